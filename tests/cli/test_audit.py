"""`twostage data audit`: its files, its numbers, cross-fitting, and what it refuses."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.data.scenes import NAMES
from twostage.detector import Detector
from twostage.inference.sources import Item

FILES = {"index.html", "suggestions.json", "cvat.xml", "label_studio.json"}


def test_audit_writes_a_page_a_list_and_files_for_tools(shell, scenes: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    answer = shell(
        *("data", "audit", scenes, "--weights", weights, "--out", out, "--most", 3, "--json"),
        *("--next", 2, "--unlabelled", scenes / "val"),
    )
    assert answer.code == 0, answer.messages
    assert {path.name for path in out.iterdir()} == {*FILES, "next.json"}
    result = answer.json
    assert (result["split"], result["images"]) == ("train", 8)
    assert set(result["counts"]) == {"missing", "wrong_class", "loose_box", "not_found", "duplicate"}
    assert len(result["next"]) == 2
    every = json.loads((out / "suggestions.json").read_text())["suggestions"]
    counts = result["counts"].values()
    assert len(every) == sum(one["suggestions"] for one in counts)
    assert len(result["suggestions"]) == sum(min(3, one["suggestions"]) for one in counts)
    assert len(ET.parse(out / "cvat.xml").getroot().findall("image")) == 8
    assert isinstance(json.loads((out / "label_studio.json").read_text()), list)
    assert "Images to label next" in (out / "index.html").read_text()


def test_audit_says_where_labels_were_learned(shell, scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = shell(
        *("train", scenes, "--model", "faster_rcnn_tiny_fpn", "--epochs", 1, "--val-split", "none", "--out", run),
        *("--size", 64, "--workers", 0),
    )
    assert trained.code == 0, trained.messages
    weights = run / "weights" / "last.safetensors"
    answer = shell("data", "audit", scenes, "--weights", weights, "--out", tmp_path / "train")
    assert "has learned some of the faults" in answer.messages
    answer = shell("data", "audit", scenes, "--split", "val", "--weights", weights, "--out", tmp_path / "val")
    assert answer.code == 0
    assert "has learned" not in answer.messages


def test_folds_judge_what_they_have_not_learned_and_can_judge_again(shell, scenes: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "folds", tmp_path / "again"
    model = ("--model", "faster_rcnn_tiny_fpn")
    asked = ("data", "audit", scenes, "--folds", 2, *model, "--minutes", 0.02, "--size", 64, "--out", out, "--quiet")
    answer = shell(*asked, "--json")
    assert answer.code == 0, answer.messages
    parts = json.loads((out / "folds" / "folds.json").read_text())["folds"]
    assert sorted(len(part) for part in parts) == [4, 4]
    assert not set(parts[0]) & set(parts[1])
    second = shell("data", "audit", scenes, "--weights", out / "folds", "--size", 64, "--out", again, "--json")
    assert second.json["counts"] == answer.json["counts"]
    assert shell(*asked).code == 2  # finished: not written again
    (out / "index.html").unlink()
    assert shell(*asked).code == 0  # stopped: gone on with
    other = next(iter((out / "folds" / "fold-2" / "weights").glob("*.safetensors")))
    names = Detector.load(other).names
    Detector.build("faster_rcnn_tiny_fpn", names[::-1], device="cpu").save(other)
    answer = shell("data", "audit", scenes, "--weights", out / "folds", "--size", 64, "--out", tmp_path / "mixed")
    assert (answer.code, f"{other}: its classes are {', '.join(names[::-1])}" in answer.messages) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "neither of weights and folds"),
        (["--weights", "x.safetensors", "--folds", "3"], "both of weights and folds"),
        (["--weights", "x.safetensors", "--next", "3"], "next is given without unlabelled"),
        (["--weights", "x.safetensors", "--unlabelled", "y"], "unlabelled is given without next"),
        (["--weights", "x.safetensors", "--minutes", "3"], "minutes is for training"),
    ],
)
def test_options_that_contradict_each_other(shell, scenes: Path, tmp_path: Path, options: list[str], message: str):
    answer = shell("data", "audit", scenes, "--out", tmp_path / "out", *options)
    assert answer.code == 2
    assert message in answer.messages
    assert not (tmp_path / "out").exists()


def test_a_wrong_path_of_unlabelled_images_is_an_error_before_the_audit(
    shell, scenes: Path, weights: Path, tmp_path: Path
) -> None:
    answer = shell(
        *("data", "audit", scenes, "--weights", weights, "--out", tmp_path / "out"),
        *("--next", 2, "--unlabelled", tmp_path / "absent"),
    )
    assert (answer.code, "absent: does not exist" in answer.messages) == (3, True)
    assert not (tmp_path / "out").exists()


def test_frames_of_a_video_are_left_out_of_the_images_to_label(
    shell, scenes: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no files that a labelling tool could open."""
    frame, file = np.zeros((60, 80, 3), np.uint8), tmp_path / "new.png"
    Image.fromarray(frame).save(file)
    items = [Item(frame, f"{tmp_path}/walk.mp4#{number}") for number in range(2)] + [Item(frame, str(file))]
    monkeypatch.setattr("twostage.inference.sources.expand", lambda _: iter(items))
    answer = shell(
        *("data", "audit", scenes, "--weights", weights, "--out", tmp_path / "out", "--json"),
        *("--next", 3, "--unlabelled", tmp_path),
    )
    assert answer.code == 0, answer.messages
    assert [one["file"] for one in answer.json["next"]] == [str(file)]
    assert "walk.mp4: its 2 frames" in answer.messages


def test_weights_of_a_training_that_diverged_are_refused(shell, scenes: Path, tmp_path: Path) -> None:
    detector = Detector.build("faster_rcnn_tiny_fpn", NAMES, device="cpu", size=64, choose_forms=False)
    torch.nn.init.constant_(detector.model.head.classes.bias, float("nan"))
    detector.save(tmp_path / "w.safetensors")
    words = ("data", "audit", scenes, "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "out", "--json")
    answer = shell(*words)
    assert (answer.code, "scores are no numbers (NaN)" in answer.messages) == (3, True)


def test_one_stage_and_other_classes_are_refused(shell, scenes: Path, tmp_path: Path) -> None:
    from twostage.data.scenes import NAMES

    for name, names, message in (("retinanet", NAMES, "one: give a two-stage"), ("faster_rcnn", ["a"], "classes")):
        file = tmp_path / f"{name}.safetensors"
        Detector.build(f"{name}_tiny_fpn", names, device="cpu", choose_forms=False).save(file)
        answer = shell("data", "audit", scenes, "--weights", file, "--out", tmp_path / "out")
        assert answer.code == 2
        assert message in answer.messages
        assert not (tmp_path / "out").exists()
