"""`twostage weights`: names, files, pickles; nothing is downloaded unless requested."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))


def test_list(shell: Callable) -> None:
    answer = shell("weights", "list")
    assert answer.code == 0
    assert "faster_rcnn_resnet50_fpn-coco" in answer.output
    assert re.search(
        r"faster_rcnn_resnet50_fpn-coco +detector of COCO +AP 37.0 +160 MiB +BSD-3-Clause\n", answer.output
    )
    assert re.search(r"mask_rcnn_resnet50_fpn-detectron2-3x +\D+AP 41.0, masks 37.2 +\? +CC-BY-SA-3.0\n", answer.output)
    assert (
        "mmdetection: code Apache-2.0; weights no stated licence (asked in mmdetection's issue 11484" in answer.output
    )
    rows = shell("weights", "list", "--json").json["weights"]
    assert {row["name"] for row in rows} >= {"vgg16-imagenet", "resnet101-imagenet"}
    assert {row["publisher"] for row in rows} == {"Python packages", "torchvision", "detectron2", "mmdetection"}
    assert not any(row["here"] for row in rows)


def test_info(shell: Callable, weights: Path) -> None:
    of_file = shell("weights", "info", weights, "--json").json
    assert (of_file["model"], of_file["detector"]) == ("faster_rcnn_tiny_fpn", True)
    assert of_file["names"][0] == "circle"
    lines = shell("weights", "info", weights).output.splitlines()
    (rpn,) = (line for line in lines if line.startswith("model.rpn "))
    assert ", nms 0.7, " in rpn  # by the path of `--set model.rpn.nms=0.7`
    assert "'" not in rpn
    of_name = shell("weights", "info", "vgg16-imagenet").output
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in of_name
    of_zoo = shell("weights", "info", "faster_rcnn_resnet50_c4-detectron2-1x", "--json").json
    assert of_zoo["size_mib"] is None
    assert of_zoo["verification"].startswith("MD5 begins with 721ade")
    assert of_zoo["proof"].startswith("the same detections")
    assert (of_zoo["licence"], of_zoo["licence_of_code"]) == ("CC-BY-SA-3.0", "Apache-2.0")
    assert shell("weights", "info", "nowhere.safetensors").code == 4


def test_card(shell: Callable, weights: Path, tmp_path: Path) -> None:
    answer = shell("weights", "card", weights)
    assert answer.code == 0
    assert answer.output.startswith(f"# {weights.name}")
    assert "5: circle, square, triangle, star, cross." in answer.output
    assert shell("weights", "card", weights, "--out", tmp_path / "card.md").code == 0
    assert (tmp_path / "card.md").read_text() == answer.output
    assert shell("weights", "card", weights, "--out", tmp_path / "card.md").code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["weights", "get", "resnet50-imagenet", "--offline"],
        ["predict", "{picture}", "--weights", "faster_rcnn_resnet50_fpn-coco", "--offline"],
        ["train", "{scenes}", "--model", "faster_rcnn_resnet50_fpn", "--weights", "resnet50-imagenet", "--offline"],
        ["data", "audit", "{scenes}", "--weights", "faster_rcnn_resnet50_fpn-coco", "--out", "a", "--offline"],
    ],
    ids=lambda words: words[0],
)
def test_without_network_the_address_is_named(shell: Callable, scenes: Path, tmp_path: Path, words: list[str]) -> None:
    known = {"scenes": scenes, "picture": sorted((scenes / "val").iterdir())[0]}
    answer = shell(*(word.format(**known) for word in words))
    assert answer.code == 4
    assert "https://download.pytorch.org/models/" in answer.messages
    assert str(tmp_path / "home" / "weights") in answer.messages


def test_predict_without_weights_names_some_and_fetches_none(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    picture = sorted((scenes / "val").iterdir())[0]
    answer = shell("predict", picture, "--device", "cpu")
    assert answer.code == 2
    for name in ("faster_rcnn_resnet50_fpn_v2-coco", "faster_rcnn_mobilenet_v3_large_320_fpn-coco"):
        assert f"twostage predict {shlex.quote(str(picture))} --weights {name}" in answer.messages
    assert "twostage weights list" in answer.messages
    assert not (tmp_path / "home").exists()


def test_get_of_an_unknown_name(shell: Callable) -> None:
    answer = shell("weights", "get", "resnet50")
    assert answer.code == 2
    assert "resnet50-imagenet" in answer.messages


@pytest.mark.slow
def test_training_starts_from_a_converted_backbone(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    answer = shell("weights", "convert", tmp_path / "a.pth", "--out", tmp_path / "a.safetensors")
    assert answer.code == 0
    started = shell(
        *("train", scenes, "--model", "faster_rcnn_resnet18_fpn", "--weights", tmp_path / "a.safetensors"),
        *("--size", 64, "--epochs", 1, "--batch", 8, "--workers", 0, "--val-split", "none", "--out", tmp_path / "run"),
    )
    assert started.code == 0
    assert re.search(r"backbone, stages 1 to 2 +\d+ of \d+ +frozen +none", started.messages)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "faster_rcnn_resnet50_fpn"], "--model needs --names"),
        (["--model", "faster_rcnn_resnet50_fpn", "--names", "cat", "--from", "detectron2"], "leave it out"),
        (["--from", "detectrom2"], 'Did you mean "detectron2"'),
        (["--from", "classifier", "--licence", "MIT"], "licence is given with --from classifier"),
        (["--model", "faster_rcnn_resnet50", "--names", "cat"], "Did you mean"),
    ],
)
def test_a_conversion_with_missing_options(shell: Callable, tmp_path: Path, words: list[str], message: str) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    answer = shell("weights", "convert", tmp_path / "a.pth", *words, "--out", tmp_path / "b.safetensors")
    assert answer.code == 2
    assert message in answer.messages
    assert not (tmp_path / "b.safetensors").exists()


def test_the_folder_one_is_in_is_no_new_file(shell: Callable, tmp_path: Path) -> None:
    answer = shell("weights", "convert", tmp_path / "a.pth", "--images", "photos", "--out", ".")
    assert answer.code == 2
    assert "--out .: exists already" in answer.messages
