"""Formats are recognised from the files; a message lists what was found where none fits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from twostage.data.recognise import check_same_classes, default_splits, evaluation_split, find_layout, open_dataset
from twostage.errors import DataError, UsageError


def coco_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    return path


def test_real_data_sets(real_data: Path) -> None:
    blood = find_layout(real_data / "blood-cells")
    assert (blood.kind, blood.splits, default_splits(blood)) == (
        "voc",
        ("test", "train", "trainval", "val"),
        ("train", "val"),
    )
    photos = find_layout(real_data / "coco-photos")
    assert (photos.kind, photos.splits, default_splits(photos)) == ("coco", ("instances",), ("instances", None))
    assert evaluation_split(photos) == "instances"
    nuclei = find_layout(real_data / "nuclei")
    assert (nuclei.kind, default_splits(nuclei), evaluation_split(nuclei)) == ("coco", ("train", "val"), "val")


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["annotations/instances_train2017.json", "annotations/captions_train2017.json"], ("train2017",)),
        (["annotations/train.json", "annotations/test.json"], ("test", "train")),
        (["train/_annotations.coco.json", "valid/_annotations.coco.json"], ("train", "valid")),
        (["train.json", "val.json"], ("train", "val")),
        (["instances.json"], ("instances",)),
    ],
)
def test_coco_layouts(tmp_path: Path, files: list[str], splits: tuple[str, ...]) -> None:
    for name in files:
        coco_file(tmp_path / name)
    layout = find_layout(tmp_path)
    assert (layout.kind, layout.splits) == ("coco", splits)
    for split in splits:
        assert open_dataset(tmp_path, split=split).names == ("a",)


@pytest.mark.parametrize("place", ["train", "train/images", "images/train", "images", "annotations", "."])
def test_images_of_a_coco_file_are_found(tmp_path: Path, place: str, make_image: Callable[..., Path]) -> None:
    path = coco_file(tmp_path / "annotations" / "instances_train.json")
    document = json.loads(path.read_text()) | {"images": [{"id": 1, "file_name": "a.jpg"}]}
    path.write_text(json.dumps(document))
    make_image(tmp_path / place / "a.jpg")
    for named in (tmp_path, path):
        dataset = open_dataset(named, split="train")
        assert dataset.path(0).resolve() == (tmp_path / place / "a.jpg").resolve()


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "val"], ("train", "val")),
        (["trainval", "test"], ("trainval", "test")),
        (["train", "trainval", "val", "valid", "test"], ("train", "val")),
        (["train2017", "val2017"], ("train2017", "val2017")),
        (["train", "training"], ("train", None)),
        (["something"], ("something", None)),
        (["test"], (None, "test")),
        (["one", "two"], (None, None)),
    ],
)
def test_default_splits(tmp_path: Path, splits: list[str], expected: tuple[str | None, str | None]) -> None:
    for split in splits:
        coco_file(tmp_path / f"{split}.json")
    layout = find_layout(tmp_path)
    assert default_splits(layout) == expected
    if expected == (None, None):
        with pytest.raises(UsageError, match="one, two"):
            evaluation_split(layout)


def test_nothing_recognised_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]))
    with pytest.raises(DataError, match=r"It holds: notes\.txt, results\.json") as caught:
        find_layout(tmp_path)
    for words in ("JPEGImages", "instances_<split>.json", "data.yaml"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        find_layout(tmp_path / "gone")
    with pytest.raises(DataError, match="is not a data set"):
        find_layout(tmp_path / "notes.txt")


def test_a_data_set_one_folder_deeper_is_hinted_at(tmp_path: Path) -> None:
    coco_file(tmp_path / "archive" / "annotations" / "instances_train.json")
    with pytest.raises(DataError, match=r"Perhaps you mean .*archive"):
        find_layout(tmp_path)


def test_two_annotation_files_in_the_folder_of_a_split_are_not_guessed_between(tmp_path: Path) -> None:
    coco_file(tmp_path / "train" / "one.json")
    coco_file(tmp_path / "train" / "two.json")
    with pytest.raises(DataError, match=r"one\.json, two\.json"):
        find_layout(tmp_path)


def test_splits_with_other_classes_are_refused(make_voc: Callable[..., Path]) -> None:
    dataset = open_dataset(make_voc({"a": [("cat", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))]}), split="train")
    check_same_classes(dataset, dataset)
    with pytest.raises(DataError, match="the order differs"):
        check_same_classes(dataset, replace(dataset, names=("dog", "cat"), split="val"))
    with pytest.raises(DataError, match=r"'val' has \['cow'"):
        check_same_classes(dataset, replace(dataset, names=("cat", "cow"), split="val"))


def test_options_of_another_format_are_refused(
    make_coco: Callable[..., Path], make_voc: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_coco([])
    with pytest.raises(UsageError, match=r"voc_offset is 0, and .* is coco"):
        open_dataset(root, split="train", voc_offset="0")
    voc = make_voc({"a": [("cat", (1, 1, 9, 9))]})
    with pytest.raises(UsageError, match="give one"):
        open_dataset(voc, split="train", voc_offset="0", boxes="xywh")
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "a.json").write_text('{"shapes": [], "imagePath": "a.png"}')
    with pytest.raises(UsageError, match="labelme has one notation"):
        open_dataset(tmp_path / "l", split="all", boxes="xywh")
