"""`twostage inspect`: the page of an image, with and without its objects, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Shell = Callable[..., Any]


@pytest.fixture
def image(scenes: Path) -> Path:
    """An image of the validation split."""
    return sorted((scenes / "val").iterdir())[0]


def data_of(page: Path) -> dict[str, Any]:
    """The data within a page."""
    return json.loads(page.read_text(encoding="utf-8").partition('id="data">')[2].partition("</script>")[0])


def test_the_page_of_an_image(shell: Shell, weights: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    answer = shell("inspect", image, "--weights", weights, "--out", out, "--device", "cpu")
    assert answer.code == 0, answer.messages
    assert f"Open {out} in a browser." in answer.output
    data = data_of(out)
    assert data["title"] == f"{image.name}, faster_rcnn_tiny_fpn"
    assert data["truth"] is None
    assert data["settings"]["score"] == 0.5


def test_with_its_data_set_the_page_has_the_objects_and_why_they_are_missed(
    shell: Shell, weights: Path, image: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    answer = shell("inspect", image, "--weights", weights, "--out", out, "--data", scenes, "--json", "--device", "cpu")
    assert answer.code == 0, answer.messages
    result = answer.json
    truth = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    (number,) = [one["id"] for one in truth["images"] if one["file_name"] == image.name]
    assert result["objects"] == sum(one["image_id"] == number for one in truth["annotations"])
    assert len(result["missed"]) == result["objects"], "random weights find nothing"
    remedy_keys = {"changes", "needs_training", "reason"}
    assert {"label", "box", "cause", "words", "detail", *remedy_keys} == set(result["missed"][0])
    assert result["bytes"] == out.stat().st_size
    data = data_of(out)
    assert len(data["truth"]["missed"]) == result["objects"]
    for place, one in enumerate(result["missed"]):
        remedy = {key: one[key] for key in remedy_keys}
        assert data["truth"]["missed"][str(place)]["remedy"] == remedy
        assert bool(one["changes"]) != bool(one["reason"])
    assert data["anchors"]["learned"] is not None


def test_thresholds_are_where_the_page_begins(shell: Shell, weights: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    options = ("--conf", "0.05", "--iou", "0.4", "--max-det", "7", "--set", "model.rpn.nms=0.6", "--size", "96")
    answer = shell("inspect", image, "--weights", weights, "--out", out, "--json", *options)
    assert answer.code == 0, answer.messages
    settings = data_of(out)["settings"]
    assert (settings["score"], settings["nms"], settings["most"], settings["rpn"]["nms"]) == (0.05, 0.4, 7, 0.6)
    assert answer.json["detections"] <= 7
    assert answer.json["settings"]["conf"] == 0.05


def test_a_copy_of_the_image_is_found_by_its_name(
    shell: Shell, weights: Path, image: Path, scenes: Path, tmp_path: Path
) -> None:
    copy = tmp_path / image.name
    copy.write_bytes(image.read_bytes())
    words = ("--weights", weights, "--data", scenes, "--split", "val", "--json")
    answer = shell("inspect", copy, "--out", tmp_path / "page.html", *words)
    assert answer.code == 0, answer.messages
    assert answer.json["objects"] > 0


def test_another_image_of_the_same_name_is_refused(
    shell: Shell, weights: Path, image: Path, scenes: Path, tmp_path: Path
) -> None:
    other = tmp_path / image.name
    Image.new("RGB", (50, 40)).save(other)
    words = ("--weights", weights, "--data", scenes, "--split", "val")
    answer = shell("inspect", other, "--out", tmp_path / "page.html", *words)
    assert answer.code == 3
    assert "another image of the same name" in answer.messages


def test_an_image_that_is_not_in_the_data_set(shell: Shell, weights: Path, scenes: Path, tmp_path: Path) -> None:
    image, out = tmp_path / "elsewhere.png", tmp_path / "page.html"
    Image.new("RGB", (50, 40)).save(image)
    answer = shell("inspect", image, "--weights", weights, "--out", out, "--data", scenes)
    assert answer.code == 3
    assert f"{image}: is not in {scenes} (looked in train, val)" in answer.messages
    assert not out.exists()


def test_wrong_usage(shell: Shell, weights: Path, image: Path, tmp_path: Path) -> None:
    """Nothing is overwritten; options of the data set need one; a folder of images is no data set."""
    there = tmp_path / "there.html"
    there.write_text("mine")
    new = tmp_path / "page.html"
    answer = shell("inspect", image, "--weights", weights, "--out", there)
    assert (answer.code, there.read_text()) == (2, "mine")
    assert "nothing is overwritten" in answer.messages
    answer = shell("inspect", image, "--weights", weights, "--out", new, "--split", "val")
    assert (answer.code, "split is for --data" in answer.messages) == (2, True)
    answer = shell("inspect", image.parent, "--weights", weights, "--out", new)
    assert (answer.code, str(image.parent) in answer.messages) == (3, True)
    answer = shell("inspect", tmp_path / "no.jpg", "--weights", weights, "--out", new)
    assert (answer.code, "no.jpg" in answer.messages) == (3, True)
    answer = shell("inspect", image, "--weights", tmp_path / "no.safetensors", "--out", new)
    assert answer.code == 4


def test_classes_that_are_all_others_are_refused(shell: Shell, image: Path, scenes: Path, tmp_path: Path) -> None:
    from twostage.detector import Detector

    other = tmp_path / "other.safetensors"
    Detector.build("faster_rcnn_tiny_fpn", ["cat", "dog"], device="cpu", size=64, max_size=128).save(other)
    answer = shell("inspect", image, "--weights", other, "--out", tmp_path / "page.html", "--data", scenes)
    assert answer.code == 2
    assert "none is the same" in answer.messages


def test_objects_of_other_classes_are_left_out(shell: Shell, image: Path, scenes: Path, tmp_path: Path) -> None:
    from twostage.detector import Detector

    some = tmp_path / "some.safetensors"
    Detector.build("faster_rcnn_tiny_fpn", ["cross", "circle"], device="cpu", size=64, max_size=128).save(some)
    out = tmp_path / "page.html"
    answer = shell("inspect", image, "--weights", some, "--out", out, "--data", scenes, "--json")
    assert answer.code == 0, answer.messages
    truth = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    (number,) = [one["id"] for one in truth["images"] if one["file_name"] == image.name]
    names = {one["id"]: one["name"] for one in truth["categories"]}
    labels = [names[one["category_id"]] for one in truth["annotations"] if one["image_id"] == number]
    assert answer.json["objects"] == sum(label in ("cross", "circle") for label in labels)
    if set(labels) - {"cross", "circle"}:
        assert "Left out: objects of classes" in answer.messages


@pytest.mark.slow
def test_a_data_set_has_a_page_of_its_missed_objects(
    shell: Callable, scenes: Path, weights: Path, tmp_path: Path
) -> None:
    page = tmp_path / "misses.html"
    answer = shell("inspect", scenes, "--weights", weights, "--device", "cpu", "--out", page, "--json")
    assert answer.code == 0, answer.messages
    why = answer.json["why"]
    missed = sum(cause["objects"] for cause in why["causes"].values())
    assert missed == len(why["objects"])
    text = page.read_text(encoding="utf-8")
    assert "Why objects are missed" in text
    assert all(f"<td>{cause.replace(chr(39), '&#x27;')}</td>" in text for cause in why["causes"])
    assert "http" not in text.replace("http-equiv", "")
    assert shell("inspect", scenes, "--weights", weights, "--data", scenes, "--out", tmp_path / "b.html").code == 2
