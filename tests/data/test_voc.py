"""VOC: pixels counted from 1 or from 0, names in sorted order, and XML that nobody should trust."""

import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from twostage.data.faults import FaultyDataError
from twostage.data.recognise import find_layout, open_dataset
from twostage.errors import DataError

BOMB = (
    '<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    "<annotation><filename>&c;</filename></annotation>"
)
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'


def test_blood_cells_equals_a_plain_reading_of_its_xml(real_data: Path) -> None:
    root = real_data / "blood-cells"
    total = 0
    for split, images in (("trainval", 292), ("test", 72)):
        dataset = open_dataset(root, split=split)
        assert len(dataset) == images
        assert dataset.names == ("Platelets", "RBC", "WBC")
        assert dataset.image_ids.tolist() == list(range(1, images + 1))
        assert dataset.category_ids.tolist() == [1, 2, 3]
        for index in range(0, images, 7):
            stem = dataset.path(index).stem
            tree = ElementTree.parse(root / "Annotations" / f"{stem}.xml")
            expected = []
            for item in tree.iter("object"):
                left, top, right, bottom = (int(item.findtext(f"bndbox/{s}")) for s in ("xmin", "ymin", "xmax", "ymax"))
                if right > left and bottom > top:
                    expected.append([left - 1, top - 1, right, bottom])
            assert dataset.objects(index).boxes.tolist() == expected
        total += len(dataset.boxes) + sum(f.code == "zero-area-box" for f in dataset.faults)
    assert total == 4888


def test_the_two_zero_area_boxes_of_blood_cells_are_named(real_data: Path) -> None:
    faults = open_dataset(real_data / "blood-cells", split="trainval").faults
    assert [(f.code, f.severity, f.file) for f in faults] == [
        ("zero-area-box", "repair", "Annotations/BloodImage_00338.xml"),
        ("zero-area-box", "repair", "Annotations/BloodImage_00343.xml"),
    ]
    assert [f.object for f in faults] == ["object 13", "object 4"]


def test_coordinates_count_from_one_unless_some_minimum_is_zero(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a": [("cat", (1, 1, 60, 40))], "b": [("dog", (3, 2, 10, 20))]}, train=["a"], val=["b"])
    dataset = open_dataset(root, split="train")
    assert dataset.boxes.tolist() == [[0, 0, 60, 40]]
    assert dataset.areas.tolist() == [2400]
    assert dataset.faults == ()
    forced = open_dataset(root, split="val", voc_offset="0")
    assert forced.boxes.tolist() == [[3, 2, 10, 20]]


def test_a_zero_anywhere_sets_the_offset_of_every_split_and_is_said(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a": [("cat", (1, 1, 60, 40))], "b": [("dog", (0, 2, 10, 20))]}, train=["a"], val=["b"])
    dataset = open_dataset(root, split="train")
    assert dataset.boxes.tolist() == [[1, 1, 60, 40]]
    (note,) = dataset.faults
    assert (note.code, note.severity, note.file, note.object) == ("voc-offset", "note", "Annotations/b.xml", "object 1")
    forced = open_dataset(root, split="val", voc_offset="1")
    assert forced.boxes.tolist() == [[0, 1, 10, 20]]
    assert [f.code for f in forced.faults] == ["box-partly-outside"]


def test_names_are_those_of_all_splits_and_sorted(make_voc: Callable[..., Path]) -> None:
    objects = {"a": [("zebra", (1, 1, 9, 9))], "b": [("ant", (1, 1, 9, 9)), ("Bee", (1, 1, 9, 9))]}
    root = make_voc(objects, train=["a"], val=["b"])
    for split in ("train", "val"):
        assert open_dataset(root, split=split).names == ("Bee", "ant", "zebra")


def test_difficult_parts_and_images_without_objects(make_voc: Callable[..., Path]) -> None:
    part = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    item = "<object><name>man</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9.5</xmax><ymax>9</ymax></bndbox>"
    root = make_voc({"a": f"<annotation>{item}{part}</object></annotation>", "b": []})
    dataset = open_dataset(root, split="train")
    assert dataset.difficult.tolist() == [True]
    assert dataset.boxes.tolist() == [[1, 1, 9.5, 9]]
    assert dataset.names == ("man",)
    assert np.diff(dataset.offsets).tolist() == [1, 0]


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, "<annotation>", "", "<a/>", "<annotation>&x;</annotation>", "\x00"])
def test_broken_or_hostile_xml_is_an_error_named_by_file(make_voc: Callable[..., Path], text: str) -> None:
    root = make_voc({"good": [("cat", (1, 1, 9, 9))], "bad": text})
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    assert [(f.code, f.file) for f in caught.value.faults] == [("broken-xml", "Annotations/bad.xml")]
    skipped = open_dataset(root, split="train", on_error="skip")
    assert [skipped.path(i).stem for i in range(len(skipped))] == ["good"]
    assert skipped.image_ids.tolist() == [2]


def test_deep_nesting_is_no_trouble(make_voc: Callable[..., Path]) -> None:
    deep = "<x>" * 10_000 + "</x>" * 10_000
    root = make_voc({"a": f"<annotation>{deep}</annotation>"})
    assert len(open_dataset(root, split="train")) == 1


@pytest.mark.parametrize(
    ("item", "code"),
    [
        ("<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>", "broken-record"),
        ("<name>cat</name>", "box-not-numbers"),
        ("<name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax></bndbox>", "box-not-numbers"),
        (
            "<name>cat</name><bndbox><xmin>one</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>",
            "box-not-numbers",
        ),
        (
            "<name>cat</name><bndbox><xmin>nan</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>",
            "box-not-numbers",
        ),
        (
            "<name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>inf</xmax><ymax>9</ymax></bndbox>",
            "box-not-numbers",
        ),
    ],
)
def test_objects_that_are_none_are_named_by_number(make_voc: Callable[..., Path], item: str, code: str) -> None:
    good = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    root = make_voc({"a": f"<annotation>{good}<object>{item}</object></annotation>"})
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    assert [(f.code, f.file, f.object) for f in caught.value.faults] == [(code, "Annotations/a.xml", "object 2")]
    assert len(open_dataset(root, split="train", on_error="skip").boxes) == 1


def test_images_and_xml_side_by_side_one_folder_per_split(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    source = make_voc({"a": [("cat", (1, 1, 9, 9))], "b": [("dog", (1, 1, 9, 9))], "c": []})
    root = tmp_path / "beside"
    for split, stem in (("train", "a"), ("train", "c"), ("valid", "b")):
        (root / split).mkdir(parents=True, exist_ok=True)
        (source / "JPEGImages" / f"{stem}.jpg").rename(root / split / f"{stem}.jpg")
        if stem != "c":
            (source / "Annotations" / f"{stem}.xml").rename(root / split / f"{stem}.xml")
    assert find_layout(root).splits == ("train", "valid")
    dataset = open_dataset(root, split="train")
    assert [dataset.file_name(i) for i in range(len(dataset))] == ["a.jpg", "c.jpg"]
    assert [f.code for f in dataset.faults] == ["unannotated-images"]
    assert open_dataset(root, split="valid").names == ("cat", "dog")


def test_an_image_called_otherwise_than_its_xml_is_found_by_filename(
    make_voc: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_voc({"a": [("cat", (1, 1, 9, 9))]})
    root = tmp_path / "beside" / "train"
    root.mkdir(parents=True)
    (source / "JPEGImages" / "a.jpg").rename(root / "a.jpg")
    (source / "Annotations" / "a.xml").rename(root / "0001.xml")
    dataset = open_dataset(root.parent, split="train")
    assert [dataset.file_name(i) for i in range(len(dataset))] == ["a.jpg"]
    assert len(dataset.boxes) == 1


def test_missing_annotations_and_images_are_named(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a": [("cat", (1, 1, 9, 9))], "b": []}, train=["a", "b", "gone"])
    (root / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    found = {(f.code, f.file) for f in caught.value.faults}
    assert found == {("missing-file", "Annotations/gone.xml"), ("missing-image", "JPEGImages/b.jpg")}


def test_lists_made_for_one_class_are_no_splits_but_can_be_named_like_them(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a 1": [("cat", (1, 1, 9, 9))], "b": []}, train=["a 1", "b"])
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("a 1  1\nb -1\n")
    assert find_layout(root).splits == ("train",)
    assert len(open_dataset(root, split="train")) == 2


def test_wrong_offset_or_split_of_an_empty_list(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a": []}, train=[""])
    assert len(open_dataset(root, split="train")) == 0
    with pytest.raises(DataError):
        open_dataset(root / "Annotations" / "a.xml", split="train")


def test_images_may_be_away_while_results_are_scored(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a": [("cat", (1, 1, 9, 9))], "b": []}, train=["a"], val=["b"])
    shutil.rmtree(root / "JPEGImages")
    assert find_layout(root).splits == ("train", "val")
    assert len(open_dataset(root, split="train", require_images=False)) == 1
    with pytest.raises(FaultyDataError, match="does not exist"):
        open_dataset(root, split="train")


def test_names_with_folders_are_read(make_image: Callable[..., Path], tmp_path: Path) -> None:
    """CVAT keeps the folders of images (cvat#9201)."""
    for camera in ("cam1", "cam2"):
        make_image(tmp_path / "JPEGImages" / camera / "a.png")
        xml = tmp_path / "Annotations" / camera / "a.xml"
        xml.parent.mkdir(parents=True)
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
        text = f"<filename>{camera}/a.png</filename><object><name>cat</name>{box}</object>"
        xml.write_text(f"<annotation>{text}</annotation>")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("cam1/a\ncam2/a\n")
    dataset = open_dataset(tmp_path, split="train")
    assert [dataset.file_name(i) for i in range(2)] == ["cam1/a.png", "cam2/a.png"]
    assert dataset.boxes.tolist() == [[1, 2, 20, 30]] * 2
    assert dataset.faults == ()
