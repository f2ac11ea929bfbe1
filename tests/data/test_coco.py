"""COCO files: what pycocotools reads from them, and every way they can be wrong."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from twostage.data.faults import FaultyDataError
from twostage.data.recognise import open_dataset
from twostage.errors import DataError, UsageError


def annotation(number: int = 1, **fields: Any) -> dict[str, Any]:
    base = {"id": number, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 8], "area": 160, "iscrowd": 0}
    return {k: v for k, v in (base | fields).items() if v != "absent"}


def codes(path: Path, **options: Any) -> list[str]:
    return [f.code for f in open_dataset(path, split="train", on_error="skip", **options).faults]


@pytest.mark.parametrize("name", ["coco-photos", "nuclei"])
def test_boxes_areas_crowds_and_masks_equal_pycocotools(real_data: Path, name: str) -> None:
    path = real_data / name / ("instances.json" if name == "coco-photos" else "val/instances_val.json")
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(path))
    dataset = open_dataset(path, split=path.stem.removeprefix("instances_"))
    assert dataset.image_ids.tolist() == [i["id"] for i in oracle.dataset["images"]]
    assert dataset.category_ids.tolist() == sorted(oracle.getCatIds())
    assert dataset.names == tuple(oracle.cats[i]["name"] for i in sorted(oracle.cats))
    for index, image_id in enumerate(dataset.image_ids.tolist()):
        expected = oracle.loadAnns(oracle.getAnnIds(image_id))
        found = dataset.objects(index)
        assert found.annotation_ids.tolist() == [a["id"] for a in expected]
        assert dataset.category_ids[found.labels].tolist() == [a["category_id"] for a in expected]
        assert found.crowd.tolist() == [bool(a["iscrowd"]) for a in expected]
        np.testing.assert_array_equal(found.areas, [a["area"] for a in expected])
        xywh = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        np.testing.assert_allclose(found.boxes, np.c_[xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], atol=0.11)
        for mask, record in zip(dataset.masks_of(index), expected, strict=True):
            np.testing.assert_array_equal(coco_mask.decode(mask), oracle.annToMask(record))


def test_ids_names_and_files_are_kept_and_labels_follow_ascending_ids(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(5, category_id=7), annotation(9, category_id=3, image_id=2)], images=3)
    dataset = open_dataset(root, split="train")
    assert dataset.names == ("dog", "cat")
    assert dataset.category_ids.tolist() == [3, 7]
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.annotation_ids.tolist() == [5, 9]
    assert [dataset.file_name(i) for i in range(3)] == ["1.jpg", "2.jpg", "3.jpg"]
    assert dataset.path(2) == root / "train" / "3.jpg"
    assert dataset.objects(2).boxes.shape == (0, 4)
    assert dataset.boxes[0].tolist() == [10, 5, 30, 13]
    assert dataset.sizes.tolist() == [[40, 60]] * 3
    assert dataset.masks is None
    assert dataset.masks_of(0) == []


def test_missing_area_iscrowd_and_id_are_filled_and_said(make_coco: Callable[..., Path]) -> None:
    triangle = [[0, 0, 20, 0, 0, 20]]
    root = make_coco(
        [
            annotation(4),
            annotation(5, area="absent", iscrowd="absent", id="absent"),
            annotation(6, area="absent", segmentation=triangle),
        ]
    )
    dataset = open_dataset(root, split="train")
    drawn = coco_mask.merge(coco_mask.frPyObjects(triangle, 40, 60))
    assert dataset.areas.tolist() == [160, 160, coco_mask.area(drawn)]
    assert dataset.annotation_ids.tolist() == [4, 7, 6]
    assert [f.code for f in dataset.faults] == ["filled-default"] * 3 + ["missing-mask"]
    assert {f.severity for f in dataset.faults} == {"note"}


def test_the_box_stands_in_for_a_mask_where_others_have_masks(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(1, segmentation=[[0, 0, 9, 0, 9, 9]]), annotation(2)])
    masks = open_dataset(root, split="train").masks_of(0)
    expected = np.zeros((40, 60), dtype=np.uint8)
    expected[5:13, 10:30] = 1
    np.testing.assert_array_equal(coco_mask.decode(masks[1]), expected)


def test_uncompressed_run_lengths_equal_compressed_ones(make_coco: Callable[..., Path]) -> None:
    pixels = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (40, 60), dtype=np.uint8))
    packed = coco_mask.encode(pixels)
    column = pixels.ravel(order="F")
    edges = np.flatnonzero(np.diff(column)) + 1
    runs = np.diff([0, *edges, len(column)]).tolist()
    runs = runs if column[0] == 0 else [0, *runs]
    root = make_coco(
        [
            annotation(1, iscrowd=1, segmentation={"size": [40, 60], "counts": runs}),
            annotation(2, iscrowd=1, segmentation={"size": [40, 60], "counts": packed["counts"].decode()}),
        ]
    )
    first, second = open_dataset(root, split="train").masks_of(0)
    assert first == second == {"size": [40, 60], "counts": packed["counts"]}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"bbox": [1, 2, 3]}, "box-not-numbers"),
        ({"bbox": ["1", 2, 3, 4]}, "box-not-numbers"),
        ({"bbox": [True, 2, 3, 4]}, "box-not-numbers"),
        ({"bbox": "absent"}, "box-not-numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "box-not-numbers"),
        ({"image_id": 99}, "unknown-image"),
        ({"image_id": "b"}, "unknown-image"),
        ({"image_id": True}, "unknown-image"),
        ({"category_id": 1}, "unknown-class"),
        ({"category_id": [7]}, "unknown-class"),
        ({"id": 1.5}, "broken-record"),
        ({"id": 2**63}, "broken-record"),
        ({"iscrowd": 2}, "broken-record"),
        ({"iscrowd": {}}, "broken-record"),
        ({"area": "large"}, "broken-record"),
        ({"segmentation": [[1, 2, 3]]}, "broken-mask"),
        ({"segmentation": [[1, 2, 3, "4", 5, 6]]}, "broken-mask"),
        ({"segmentation": [[0, 0, 1e300, 0, 5, 6]]}, "broken-mask"),
        ({"segmentation": [[0, 0, 1e9, 1e9, 5, 6]]}, "broken-mask"),
        ({"segmentation": [[-99999, -99999, 99999, 99999] * 100]}, "broken-mask"),
        ({"segmentation": {"size": [40, 60], "counts": [10**9]}}, "broken-mask"),
        ({"segmentation": {"size": [40, 60], "counts": [-1, 2401]}}, "broken-mask"),
        ({"segmentation": {"size": [40, 60], "counts": "\x01\x02"}}, "broken-mask"),
        ({"segmentation": {"size": [40, 60], "counts": "oooooooooooooooo"}}, "broken-mask"),
        ({"segmentation": {"size": [60, 40], "counts": [2400]}}, "broken-mask"),
        ({"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}, "broken-mask"),
        ({"segmentation": "text"}, "broken-mask"),
    ],
)
def test_wrong_fields_are_errors_that_name_the_annotation(
    make_coco: Callable[..., Path], fields: dict[str, Any], code: str
) -> None:
    root = make_coco([annotation(1), annotation(2, **fields)])
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    (found,) = caught.value.faults
    assert found.code == code
    assert found.file == "annotations/instances_train.json"
    assert found.object.startswith("annotations[1]")
    skipped = open_dataset(root, split="train", on_error="skip")
    assert skipped.annotation_ids.tolist() == [1]
    assert code in [f.code for f in skipped.faults]


@pytest.mark.parametrize(
    ("bbox", "code", "kept"),
    [
        ([10, 5, 0, 8], "zero-area-box", None),
        ([10, 5, -3, 8], "inverted-box", None),
        ([70, 5, 20, 8], "box-outside", None),
        ([-30, 5, 20, 8], "box-outside", None),
        ([60, 5, 3, 8], "box-outside", None),
        ([20, 5, 1e-9, 8], "zero-area-box", None),
        ([50, 30, 20, 20], "box-partly-outside", [50, 30, 60, 40]),
        ([-5, -5, 10, 10], "box-partly-outside", [0, 0, 5, 5]),
        ([50, 30, 10.05, 10], None, [50, 30, 60, 40]),
    ],
)
def test_repairable_boxes_are_dropped_or_clipped_and_listed(
    make_coco: Callable[..., Path], bbox: list[float], code: str | None, kept: list[float] | None
) -> None:
    root = make_coco([annotation(1, bbox=bbox)])
    dataset = open_dataset(root, split="train")
    assert [(f.code, f.severity) for f in dataset.faults] == ([(code, "repair")] if code else [])
    assert dataset.boxes.tolist() == ([kept] if kept else [])
    if code:
        assert "annotations[0] (id 1, image 1.jpg)" in dataset.faults[0].object
        with pytest.raises(DataError, match=code):
            open_dataset(root, split="train", on_error="fail")


def test_all_errors_are_listed_at_once(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(1, category_id=1), annotation(2, bbox=None), annotation(3, image_id=5)])
    (root / "train" / "2.jpg").unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(root, split="train")
    for words in ("unknown-class", "box-not-numbers", "unknown-image", "missing-image", "faults in the split 'train'"):
        assert words in str(caught.value)


def test_colliding_ids(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(1), annotation(1, image_id=2)])
    dataset = open_dataset(root, split="train")
    assert dataset.annotation_ids.tolist() == [1, 2]
    assert [f.code for f in dataset.faults] == ["duplicate-annotation-id"]
    twice = [{"id": 1, "file_name": "1.jpg"}, {"id": 1, "file_name": "2.jpg"}, {"id": 2, "file_name": "1.jpg"}]
    assert codes(make_coco([], images=2) and _with(root, images=twice)) == ["duplicate-image-id", "duplicate-file"]
    names = [{"id": 7, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "cat"}, {"id": 9}]
    root = _with(root, categories=names)
    assert codes(root)[:3] == ["duplicate-class", "broken-record", "unused-category"]


def _with(root: Path, **fields: Any) -> Path:
    path = root / "annotations" / "instances_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "broken-json"),
        (b'{"images": [{"id": 1, ', "broken-json"),
        (b'{"images": [], "annotations": [{"bbox": [NaN, 1, 2, 3]}]}', "broken-json"),
        (b'{"images": [], "annotations": [{"bbox": [Infinity, 1, 2, 3]}]}', "broken-json"),
        (b"[" * 100_000, "broken-json"),
        (b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", "broken-json"),
        (b"\xff\xfe\x00\x01\x02", "broken-json"),
        (b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "annotations": 0}]', "broken-json"),
        (b'{"images": 3, "annotations": []}', "broken-json"),
        (b'{"annotations": []}', "broken-json"),
    ],
)
def test_json_that_is_no_data_set_is_named(tmp_path: Path, text: bytes, code: str) -> None:
    path = tmp_path / "instances_train.json"
    path.write_bytes(text)
    for place in (path, tmp_path):
        with pytest.raises(FaultyDataError) as caught:
            open_dataset(place, split="train", on_error="skip")
        assert [f.code for f in caught.value.faults] == [code]
        assert str(path) in str(caught.value)


def test_huge_floats_are_no_numbers(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(1)])
    path = root / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace("[10, 5,", "[1e999, 5,"))
    assert codes(root) == ["box-not-numbers"]


def test_no_image_at_all_is_one_error_that_says_where_was_looked(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(1)])
    (root / "train").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"none of its 2 images.*--images"):
        open_dataset(root, split="train")
    assert len(open_dataset(root, split="train", images=root / "elsewhere")) == 2
    assert len(open_dataset(root, split="train", require_images=False)) == 2
    with pytest.raises(DataError, match="is not a folder"):
        open_dataset(root, split="train", images=root / "nowhere")


def test_sizes_that_disagree_with_the_image(make_coco: Callable[..., Path]) -> None:
    lies = [{"id": 1, "file_name": "1.jpg", "height": 400, "width": 600}]
    rle = {"size": [400, 600], "counts": [240000]}
    root = _with(make_coco([annotation(1), annotation(2, segmentation=rle)]), images=lies)
    dataset = open_dataset(root, split="train", on_error="skip")
    assert [f.code for f in dataset.faults] == ["size-mismatch", "broken-mask"]
    assert dataset.sizes.tolist() == [[40, 60]]
    assert dataset.annotation_ids.tolist() == [1]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_annotations_of_the_image_before_exif_turned_it_are_turned(
    make_coco: Callable[..., Path], orientation: int
) -> None:
    ring = [10.0, 5.0, 30.0, 5.0, 30.0, 13.0, 10.0, 13.0]
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[5:13, 10:30] = 1
    rle = coco_mask.encode(np.asfortranarray(pixels))
    compressed = {"size": [40, 60], "counts": rle["counts"].decode()}
    root = make_coco([annotation(1, segmentation=[ring]), annotation(2, segmentation=compressed)], images=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = root / "train" / "1.jpg"
    Image.open(picture).save(picture, exif=exif)
    dataset = open_dataset(root, split="train")
    assert [f.code for f in dataset.faults] == ["rotated-annotation"]
    assert dataset.sizes.tolist() == [[60, 40]]
    # The oracle: the mask as an image of its own, turned by Pillow.
    turns = {5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    upright = np.asarray(Image.fromarray(pixels).transpose(Image.Transpose[turns[orientation]]))
    rows, columns = np.nonzero(upright)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert dataset.boxes.tolist() == [box, box]
    for mask in dataset.masks_of(0):
        np.testing.assert_array_equal(coco_mask.decode(mask), upright)


def test_annotations_of_the_upright_image_stay(make_coco: Callable[..., Path]) -> None:
    upright = [{"id": 1, "file_name": "1.jpg", "height": 60, "width": 40}]
    root = _with(make_coco([annotation(1, bbox=[10, 5, 20, 50])]), images=upright)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "train" / "1.jpg").save(root / "train" / "1.jpg", exif=exif)
    dataset = open_dataset(root, split="train")
    assert dataset.faults == ()
    assert dataset.boxes.tolist() == [[10, 5, 30, 55]]


def test_file_names_of_any_script(make_coco: Callable[..., Path]) -> None:
    names = ["sp ace.jpg", "사진.jpg", "new\nline.jpg", "😀.jpg"]
    root = make_coco([], images=4)
    for number, name in enumerate(names, start=1):
        (root / "train" / f"{number}.jpg").rename(root / "train" / name)
    dataset = open_dataset(_with(root, images=[{"id": i, "file_name": n} for i, n in enumerate(names)]), split="train")
    assert [dataset.file_name(i) for i in range(4)] == names
    assert all(dataset.path(i).is_file() for i in range(4))


def test_unreadable_image_is_an_error_and_can_be_skipped(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(1), annotation(2, image_id=2)])
    (root / "train" / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"unreadable-image error train/1\.jpg: is empty"):
        open_dataset(root, split="train")
    dataset = open_dataset(root, split="train", on_error="skip")
    assert dataset.image_ids.tolist() == [2]
    assert dataset.annotation_ids.tolist() == [2]


def test_wrong_split_names_the_nearest(make_coco: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="Did you mean 'train'"):
        open_dataset(make_coco([]), split="trian")


@pytest.mark.parametrize("name", ["red\n\nevil", "\x1b[31mred", " ", ""])
def test_a_class_name_is_a_line_of_text(make_coco: Callable[..., Path], name: str) -> None:
    root = make_coco([annotation()], categories=[{"id": 7, "name": name}])
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    assert [f.code for f in caught.value.faults] == ["broken-record"]
    assert repr(name) in caught.value.faults[0].message


def test_an_unused_category_of_the_same_name_is_left_out_and_no_object_with_it(make_coco: Callable[..., Path]) -> None:
    """Roboflow's root category may have the name of a class (rf-detr#1303)."""
    categories = [{"id": 0, "name": "cat", "supercategory": "none"}, {"id": 3, "name": "cat"}]
    dataset = open_dataset(make_coco([annotation(1, category_id=3)], categories=categories), split="train")
    assert dataset.names == ("cat",)
    assert dataset.category_ids.tolist() == [3]
    assert len(dataset.labels) == 1
    assert [fault.code for fault in dataset.faults if fault.code != "filled-default"] == ["unused-category"]


def test_two_categories_of_one_name_are_one_class(make_coco: Callable[..., Path]) -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}]
    annotations = [annotation(1, category_id=1), annotation(2, category_id=3), annotation(3, category_id=2)]
    dataset = open_dataset(make_coco(annotations, categories=categories), split="train")
    assert dataset.names == ("cat", "dog")
    assert sorted(dataset.labels.tolist()) == [0, 0, 1]
    assert "merged-classes" in [fault.code for fault in dataset.faults]


def test_objects_of_a_category_without_a_name_are_kept(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(1, category_id=5)], categories=[{"id": 5}, {"id": 6, "name": "cat"}])
    assert codes(root)[0] == "broken-record"
    dataset = open_dataset(root, split="train", on_error="skip")
    assert (dataset.names, dataset.labels.tolist()) == (("5", "cat"), [0])


def test_an_image_that_is_listed_twice_has_the_objects_of_both_entries(make_coco: Callable[..., Path]) -> None:
    root = make_coco([annotation(1, image_id=1), annotation(2, image_id=2)])
    root = _with(root, images=[{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "1.jpg"}])
    dataset = open_dataset(root, split="train")
    assert len(dataset) == 1
    assert len(dataset.labels) == 2
