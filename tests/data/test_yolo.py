"""YOLO: fractions of the image, polygons, and the many ways data.yaml is written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from twostage.data.faults import FaultyDataError
from twostage.data.recognise import find_layout, open_dataset


def test_boxes_are_centre_and_size_as_fractions(make_yolo: Callable[..., Path]) -> None:
    root = make_yolo({"a": "0 0.5 0.5 1 1\n1 0.25 0.25 0.1 0.2\n\n", "b": ""})
    dataset = open_dataset(root, split="train")
    np.testing.assert_allclose(dataset.boxes, [[0, 0, 60, 40], [12, 6, 18, 14]], atol=1e-5)
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.names == ("cat", "dog")
    assert dataset.category_ids.tolist() == [1, 2]
    assert dataset.image_ids.tolist() == [1, 2]
    assert np.diff(dataset.offsets).tolist() == [2, 0]
    assert dataset.faults == ()
    assert dataset.masks is None


def test_polygons_give_boxes_and_masks(make_yolo: Callable[..., Path]) -> None:
    dataset = open_dataset(make_yolo({"a": "1 0.1 0.1 0.5 0.1 0.5 0.6\n"}), split="train")
    np.testing.assert_allclose(dataset.boxes, [[6, 4, 30, 24]], atol=1e-5)
    ring = [6.0, 4.0, 30.0, 4.0, 30.0, 24.0]
    expected = coco_mask.merge(coco_mask.frPyObjects([ring], 40, 60))
    assert coco_mask.decode(dataset.masks_of(0)[0]).tolist() == coco_mask.decode(expected).tolist()
    assert dataset.areas.tolist() == [coco_mask.area(expected)]


def test_images_without_label_file_have_no_objects_and_are_counted(make_yolo: Callable[..., Path]) -> None:
    dataset = open_dataset(make_yolo({"a": "0 0.5 0.5 1 1", "b": None}), split="train")
    assert np.diff(dataset.offsets).tolist() == [1, 0]
    (note,) = dataset.faults
    assert (note.code, note.severity) == ("unannotated-images", "note")
    assert note.message.endswith("1, 'b.png' the first")


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("0 0.5 0.5 1", "broken-row"),
        ("0 0.5 0.5 1 1 0.9", "broken-row"),
        ("0 0.5 0.5 1 1 0.9 1 1", "broken-row"),
        ("horse 0.5 0.5 1 1", "box-not-numbers"),
        ("0 nan 0.5 1 1", "box-not-numbers"),
        ("0 inf 0.5 1 1", "box-not-numbers"),
        ("2 0.5 0.5 1 1", "unknown-class"),
        ("-1 0.5 0.5 1 1", "unknown-class"),
        ("0.5 0.5 0.5 1 1", "unknown-class"),
        ("nan 0.5 0.5 1 1", "box-not-numbers"),
        ("0 30 20 10 10", "not-normalised"),
        ("0 0.1 0.1 nan 0.5 0.6 0.6", "box-not-numbers"),
        ("0 0.1 0.1 0.5 0.1 0.5 nan 0.1 0.5", "box-not-numbers"),
    ],
)
def test_bad_rows_are_errors_named_by_line(make_yolo: Callable[..., Path], row: str, code: str) -> None:
    root = make_yolo({"a": f"0 0.5 0.5 1 1\n{row}\n"})
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    assert [(f.code, f.file, f.object) for f in caught.value.faults] == [(code, "labels/train/a.txt", "line 2")]
    assert len(open_dataset(root, split="train", on_error="skip").boxes) == 1


def test_a_label_file_that_is_no_text_is_an_error(make_yolo: Callable[..., Path]) -> None:
    root = make_yolo({"a": "", "b": ""})
    (root / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\xff")
    dataset = open_dataset(root, split="train", on_error="skip")
    assert [(f.code, f.file) for f in dataset.faults] == [("unreadable-file", "labels/train/a.txt")]
    assert [dataset.path(i).stem for i in range(len(dataset))] == ["b"]


@pytest.mark.parametrize(
    "yaml",
    [
        "names: {0: cat, 1: dog}\ntrain: images/train",
        "path: .\nnames: [cat, dog]\ntrain: [images/train]\nnc: 2",
        "names: [cat, dog]\ntrain: ../images/train",
        "names: [cat, dog]\npath: elsewhere\ntrain: images/train",
        "names: [cat, dog]\ntrain: list.txt",
    ],
)
def test_data_yaml_is_read_in_its_many_shapes(make_yolo: Callable[..., Path], yaml: str) -> None:
    root = make_yolo({"a": "1 0.5 0.5 1 1"}, yaml)
    (root / "list.txt").write_text("./images/train/a.png\n")
    for place in (root, root / "data.yaml"):
        dataset = open_dataset(place, split="train")
        assert dataset.names == ("cat", "dog")
        assert dataset.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("train: images/train", "no list of names"),
        ("names: []\ntrain: images/train", "no list of names"),
        ("names: {1: cat, 2: dog}\ntrain: images/train", "numbered 0 to 1"),
        ("names: [cat, no]\ntrain: images/train", "quotes"),
        ("names: [cat, cat]\ntrain: images/train", "share a name"),
        ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc is 3"),
        ("names: [cat, dog]\ntrain: images/gone", "does not exist"),
        ("names: [cat, dog\ntrain: x", "cannot be read"),
        ("just text", "has no keys"),
        ("a: &a [1]\nb: [*a, *a]\nnames: [cat]\ntrain: images/train", "aliases"),
        ("names: !!python/object/apply:os.system [ls]\ntrain: x", "cannot be read"),
        ("names: " + "[" * 500_000, "nested too deeply"),
        ("names: " + "- " * 5000, "cannot be read"),
    ],
)
def test_bad_data_yaml_is_named(make_yolo: Callable[..., Path], yaml: str, words: str) -> None:
    root = make_yolo({"a": ""}, yaml)
    with pytest.raises(FaultyDataError, match=words) as caught:
        open_dataset(root, split="train")
    assert "data.yaml" in str(caught.value)


def test_splits_are_those_that_data_yaml_names(make_yolo: Callable[..., Path]) -> None:
    root = make_yolo({"a": ""}, "names: [cat]\ntrain: images/train\nval: images/train\ntest:\n")
    assert find_layout(root).splits == ("train", "val")


def test_a_split_without_images_is_an_error(make_yolo: Callable[..., Path]) -> None:
    """Without them its rows mean nothing; and no number of 0 images should look like a result."""
    root = make_yolo({"a": "0 0.5 0.5 1 1"})
    next((root / "images" / "train").iterdir()).unlink()
    with pytest.raises(FaultyDataError, match="no images in"):
        open_dataset(root, split="train")
