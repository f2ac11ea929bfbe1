"""Whatever is in a file: a data set, or a DataError that names faults; never another exception."""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from twostage.data.check import check
from twostage.data.convert import convert
from twostage.data.images import probe, read_header, read_image
from twostage.data.recognise import open_dataset
from twostage.errors import DataError

SETTINGS = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([1, 7, 2**31, 2**63, 1e308, -0.0, "1.jpg", "../1.jpg", "\0", ""]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ANNOTATION = {
    "id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 1, "iscrowd": 0,
    "segmentation": {"size": [40, 60], "counts": [2400]},
}  # fmt: skip
NUMBERS = st.integers(-(10**12), 10**12) | st.floats()


def assert_sound_or_refused(root: Path, on_error: str) -> None:
    try:
        dataset = open_dataset(root, split="train", on_error=on_error)
    except DataError:
        return
    assert np.isfinite(dataset.boxes).all()
    assert (dataset.boxes[:, 2:] > dataset.boxes[:, :2]).all()
    assert (dataset.boxes >= 0).all()
    for index in range(len(dataset)):
        height, width = dataset.sizes[index]
        assert (dataset.objects(index).boxes <= [width, height, width, height]).all()
        assert len(dataset.masks_of(index)) in (0, len(dataset.objects(index).boxes))


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    Image.new("RGB", (60, 40)).save(root / "images" / "1.jpg")
    return root


@pytest.mark.slow
@SETTINGS
@given(part=st.sampled_from(["images", "annotations", "categories"]), field=st.sampled_from(
    ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "file_name", "height", "name", ""]
), value=VALUES)  # fmt: skip
def test_any_value_in_any_field_of_a_coco_file(coco_root: Path, part: str, field: str, value: Any) -> None:
    document: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}],
        "annotations": [dict(ANNOTATION), ANNOTATION | {"id": 2, "segmentation": [[1, 2, 3, 4, 5, 6]]}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    if field:
        document[part][0][field] = value
    else:
        document[part] = value
    (coco_root / "instances_train.json").write_text(json.dumps(document), encoding="utf-8")
    for on_error in ("default", "skip"):
        assert_sound_or_refused(coco_root / "instances_train.json", on_error)


@SETTINGS
@given(box=st.lists(NUMBERS, min_size=4, max_size=4), ring=st.lists(NUMBERS, min_size=0, max_size=12))
def test_any_numbers_for_boxes_and_polygons(coco_root: Path, box: list[float], ring: list[float]) -> None:
    document = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}],
        "annotations": [ANNOTATION | {"bbox": box}, ANNOTATION | {"id": 2, "segmentation": [ring]}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    (coco_root / "instances_train.json").write_text(json.dumps(document), encoding="utf-8")
    assert_sound_or_refused(coco_root / "instances_train.json", "skip")


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp", "tif", "bmp", "jp2", "ppm", "avif"])
def test_images_with_random_damage_are_read_or_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    chance = random.Random(0)
    refusals: list[str] = []
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
        for read in (read_image, read_header, probe):
            try:
                found = read(path)
            except DataError as error:
                refusals.append(str(error))
            else:
                size = found.shape if read is read_image else found[:2]
                assert min(size) > 0
    assert refusals
    assert all(str(path) in text for text in refusals)


def test_links_in_circles_and_odd_places(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "a.jpg").symlink_to(tmp_path / "images" / "a.jpg")
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "b.jpg")
    (tmp_path / "images" / "folder.jpg").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "b.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: images\n")
    report = check(tmp_path)
    assert {(f.code, f.file) for f in report.faults if f.severity == "error"} == {
        ("unreadable-image", "images/a.jpg"),
        ("unreadable-image", "images/folder.jpg"),
    }
    assert report.splits["train"]["images"] == 1


def test_names_longer_than_any_file_system_takes(coco_root: Path) -> None:
    document = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "x" * 5000}],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat"}],
    }
    (coco_root / "instances_train.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match="unreadable-image"):
        open_dataset(coco_root / "instances_train.json", split="train")


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_a_pipe_is_not_waited_for(
    make_voc: Callable[..., Path], make_yolo: Callable[..., Path], kind: str, tmp_path: Path
) -> None:
    if kind == "voc":
        root = make_voc({"a": [("dog", (2, 3, 20, 30))], "b": []})
        path, code = root / "Annotations" / "a.xml", "broken-xml"
    else:
        root = make_yolo({"a": "0 0.5 0.5 0.2 0.2", "b": ""})
        path, code = root / "labels" / "train" / "a.txt", "unreadable-file"
    replaced_by_a_pipe(path)
    report = check(root)
    assert (code, path.name) in {(f.code, Path(f.file).name) for f in report.faults}
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        check(tmp_path / "pipe.json")


def test_a_folder_in_place_of_an_annotation_that_had_something_beside_it(
    make_coco: Callable[..., Path], tmp_path: Path
) -> None:
    root = convert(make_coco([ANNOTATION | {"id": 5}], images=2), tmp_path / "out", "voc").path
    path = root / "Annotations" / "1.xml"
    path.unlink()
    path.mkdir()
    assert "broken-xml" in {f.code for f in check(root).faults}
