"""The verbs of `twostage data` that write."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from twostage.common_options import ResizeOptions
from twostage.models.zoo import named
from twostage.training.options import TrainOptions


@pytest.fixture
def faulty(scenes: Path, tmp_path: Path) -> Path:
    """The scenes with one box beyond the image border."""
    root = tmp_path / "faulty"
    shutil.copytree(scenes, root)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [150, 150, 100, 20]
    path.write_text(json.dumps(content))
    return root


def test_convert(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    answer = shell("data", "convert", scenes, "--to", "voc", "--out", tmp_path / "voc", "--json")
    assert answer.code == 0
    assert answer.json["out"] == str(tmp_path / "voc")
    assert answer.json["splits"]["train"]["images"] == 8
    checked = shell("data", "check", tmp_path / "voc", "--json")
    assert checked.json["splits"]["val"]["images"] == 4
    assert shell("data", "convert", tmp_path / "voc", "--to", "yolo", "--out", tmp_path / "voc").code == 2


def test_fix_writes_a_copy_that_is_checked(shell: Callable, faulty: Path, tmp_path: Path) -> None:
    answer = shell("data", "check", faulty, "--fix", tmp_path / "mended", "--remove", "--json")
    assert answer.code == 0
    assert (answer.json["ok"], answer.json["fixed"]["ok"]) == (False, True)
    assert answer.json["fixed"]["out"] == str(tmp_path / "mended")
    assert shell("data", "check", faulty).code == 3
    assert shell("data", "check", tmp_path / "mended").code == 0


def test_check_takes_the_image_size_of_the_default_model() -> None:
    image, default = (
        named(TrainOptions(Path("data")).model).image,
        {field.name: field.default for field in fields(ResizeOptions)},
    )
    assert (default["size"], default["max_size"]) == (image.size, image.max_size)


def test_nothing_to_fix(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    answer = shell("data", "check", scenes, "--fix", tmp_path / "mended")
    assert answer.code == 0
    assert "nothing to repair" in answer.output
    assert not (tmp_path / "mended").exists()


def test_split(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    parts = ("--parts", "train=0.5,val=0.25", "test=0.25")
    answer = shell("data", "split", scenes, *parts, "--to", "yolo", "--out", tmp_path / "new", "--json")
    assert answer.code == 0
    images = {name: counts["images"] for name, counts in answer.json["splits"].items()}
    assert sum(images.values()) == 12
    assert images["train"] in (5, 6, 7)
    assert shell("data", "check", tmp_path / "new").code == 0


@pytest.mark.parametrize(
    ("parts", "words"),
    [(["train"], "name=fraction"), (["a=0.5", "a=0.5"], "twice"), (["a=0.5", "b=0.6"], "add up to 1")],
)
def test_wrong_parts(shell: Callable, scenes: Path, tmp_path: Path, parts: list[str], words: str) -> None:
    answer = shell("data", "split", scenes, "--parts", *parts, "--out", tmp_path / "new")
    assert answer.code == 2
    assert words in answer.messages
    assert not (tmp_path / "new").exists()


def test_stats(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    answer = shell("data", "stats", scenes, "--size", 192, "--out", tmp_path / "stats", "--json")
    assert answer.code == 0
    assert answer.json["splits"]["train"]["images"] == 8
    assert json.loads((tmp_path / "stats" / "stats.json").read_text()) == answer.json
    names = {path.name for path in (tmp_path / "stats").iterdir()}
    assert names >= {"labels-train.png", "smallest-train.jpg", "crowded-val.jpg", "anchors-train.png"}
    table = shell("data", "stats", scenes).output
    assert "object side, px" in table
    assert "triangle" in table
    assert "at --size 320" in table  # that of the default model


def test_stats_of_anchors(shell: Callable, scenes: Path) -> None:
    arguments = ("data", "stats", scenes, "--model", "faster_rcnn_tiny_fpn", "--train-split", "val")
    answer = shell(*arguments, "--json").json
    anchors, sizes = answer["anchors"], answer["image_sizes"]
    assert (anchors["model"], anchors["split"], anchors["size"]) == ("faster_rcnn_tiny_fpn", "val", 320)
    assert anchors["objects"] == sum(anchors[size]["objects"] for size in ("small", "medium", "large"))
    assert anchors["objects"] == sum(row["objects"] for row in anchors["classes"].values())
    own = next(row for row in anchors["zoo"] if anchors["model"] in row["models"])
    now = next(row for row in sizes if row["size"] == 320)
    assert (anchors["iou50"], anchors["iou70"]) == (own["iou50"], own["iou70"]) == (now["iou50"], now["iou70"])
    assert now["pixels"] == 1
    table = shell(*arguments).output
    for words in ("Anchors of faster_rcnn_tiny_fpn, split val", "faster_rcnn_vgg16 and 1 more", "320 (now)", "square"):
        assert words in table


def test_stats_proposes_flags_that_reach_what_it_prints(shell: Callable, real_data: Path) -> None:
    """The printed command has the options that were given; its flags give the shares that are printed beside it."""
    given = ("--train-split", "val", "--size", 400, "--set", "model.anchor_offset=2", "--voc-offset", 1)
    arguments = ("data", "stats", real_data / "blood-cells", *given)
    answer = shell(*arguments, "--json")
    proposal = answer.json["anchors"]["proposal"]
    (line,) = (line for line in answer.messages.splitlines() if line.startswith("twostage train "))
    assert line.endswith(proposal["flags"])
    words = shlex.split(line)
    assert words[2] == str(real_data / "blood-cells")
    assert {"val", "400", "model.anchor_offset=2", "--voc-offset", "faster_rcnn_lite0_fpn"} <= set(words)
    changed = shell("data", "stats", *words[2:], "--json").json["anchors"]
    assert changed["anchor_sizes"] == proposal["anchor_sizes"]
    assert (changed["iou50"], changed["iou70"]) == (proposal["iou50"], proposal["iou70"])


@pytest.mark.parametrize(("model", "has_sizes"), [("fast_rcnn_tiny", True), ("rcnn_tiny", False)])
def test_stats_of_a_model_without_anchors(shell: Callable, scenes: Path, model: str, has_sizes: bool) -> None:
    answer = shell("data", "stats", scenes, "--model", model, "--json")
    assert answer.json["anchors"] is None
    assert (answer.json["image_sizes"] is not None) == has_sizes
    assert f"{model} has no anchors" in answer.messages
    assert ("320 (now)" in answer.messages) == has_sizes
    assert ("IoU 0.5" in answer.messages) is False


def test_stats_has_the_size_that_training_chooses(shell: Callable, real_data: Path) -> None:
    """Nuclei have a median side of 16 pixels at 320."""
    answer = shell("data", "stats", real_data / "nuclei", "--json")
    assert answer.json["anchors"]["size"] == 480
    assert "--model faster_rcnn_lite0_fpn --size 480 " in answer.messages
    tiny = shell("data", "stats", real_data / "nuclei", "--model", "faster_rcnn_tiny_fpn", "--json")
    assert tiny.json["anchors"]["size"] == 320


def test_stats_without_objects(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    answer = shell("data", "stats", tmp_path / "data", "--out", tmp_path / "stats", "--json")
    assert answer.code == 0
    assert (answer.json["anchors"]["objects"], answer.json["anchors"]["proposal"]) == (0, None)
    assert "No objects to compare anchors with" in answer.messages


def test_stats_refuses_wrong_names(shell: Callable, scenes: Path) -> None:
    for arguments, words in (
        (("--model", "faster_rcnn_lite0_fnp"), "Did you mean 'faster_rcnn_lite0_fpn'?"),
        (("--train-split", "trian"), "Did you mean 'train'?"),
        (("--set", "model.anchor_sizes=[[8.0]]"), "4 levels"),
    ):
        answer = shell("data", "stats", scenes, *arguments)
        assert (answer.code, answer.output) == (2, "")
        assert words in answer.messages


def test_view(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    answer = shell("data", "view", scenes, "--most", 3, "--order", "crowded", "--out", page, "--json")
    assert answer.code == 0
    assert len(answer.json["shown"]) == 3
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 3
    assert "http" not in text
    assert shell("data", "view", scenes, "--out", page).code == 2
    wrong = shell("data", "view", scenes, "--only", "trangle", "--out", tmp_path / "other.html")
    assert wrong.code == 2
    assert "triangle" in wrong.messages


def test_view_shows_one_class_only(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    content = json.loads((scenes / "annotations" / "instances_train.json").read_text())
    star = next(c["id"] for c in content["categories"] if c["name"] == "star")
    with_star = {a["image_id"] for a in content["annotations"] if a["category_id"] == star}
    expected = {image["file_name"] for image in content["images"] if image["id"] in with_star}
    answer = shell("data", "view", scenes, "--only", "star", "--out", tmp_path / "stars.html", "--json")
    assert set(answer.json["shown"]) == expected


def test_get_prints_address_size_and_licence(shell: Callable, tmp_path: Path) -> None:
    answer = shell("data", "get", "coco2017", "--splits", "val2017", "--out", tmp_path / "coco", "--offline")
    assert answer.code == 4
    for word in ("CC BY 4.0", "http://images.cocodataset.org/zips/val2017.zip, 778 MiB, SHA-256 4f7e2ccb", "train2017"):
        assert (word in answer.output) == (word != "train2017")
    assert str(tmp_path / "coco.archives" / "annotations_trainval2017.zip") in answer.messages
    assert "Did you mean 'voc2012'?" in shell("data", "get", "voc12").messages
