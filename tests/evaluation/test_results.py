"""Results in memory and in the files of COCO and of the VOC devkit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as mask_tools

from twostage.data.dataset import match_classes
from twostage.data.flat import FlatStrings
from twostage.errors import DataError
from twostage.evaluation.results import Accumulator, Results

GOOD = {"image_id": 42, "category_id": 18, "bbox": [258.15, 41.29, 348.26, 243.78], "score": 0.236}


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(
        [[], []], [[], []], names=("dog", "cat"), image_ids=[42, 7], category_ids=[18, 3], size=(30, 40)
    )


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reads_ids_and_corners(tmp_path, dataset):
    entries = [GOOD, {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 1}]
    results = Results.from_coco(write(tmp_path / "r.json", entries), dataset)
    assert results.images.tolist() == [0, 1]
    assert results.class_ids.tolist() == [0, 1]
    assert results.scores.tolist() == [0.236, 1.0]
    np.testing.assert_allclose(results.boxes, [[258.15, 41.29, 606.41, 285.07], [1, 2, 4, 6]])
    assert results.masks is None


def test_detections_of_classes_that_the_files_lack_are_not_written(tmp_path, dataset):
    """There is no id for them: other tools, and the reader here, would refuse the file."""
    masks = [mask_tools.encode(np.full((30, 40), number, dtype=np.uint8, order="F")) for number in (0, 1, 1)]
    corners = np.array([[1, 2, 4, 6], [2, 3, 4, 5], [0, 0, 9, 9]], dtype=np.float64)
    results = Results(np.array([0, 0, 1]), corners, np.array([0.9, 0.8, 0.7]), np.array([2, 1, 0]), masks)
    matched = match_classes(dataset, ["cat", "bird", "dog"])
    rows = results.to_coco(matched)
    assert [(row["image_id"], row["category_id"], row["score"]) for row in rows] == [(42, 18, 0.9), (7, 3, 0.7)]
    assert [mask_tools.area(row["segmentation"]) for row in rows] == [0, 30 * 40]
    again = Results.from_coco(write(tmp_path / "r.json", rows), dataset)
    assert again.class_ids.tolist() == [0, 1], "in the data set's own order"


def test_names_in_an_entry_decide_over_its_ids(tmp_path, dataset):
    """`predict` numbers images and classes as it meets them; the data set has its own numbers."""
    names = [dataset.file_name(i) for i in range(2)]
    entries = [
        {**GOOD, "image_id": 1, "category_id": 1, "file_name": f"some/where/{names[1]}", "category_name": "cat"},
        {**GOOD, "image_id": 7, "category_id": 3, "file_name": names[0], "category_name": "dog"},
    ]
    results = Results.from_coco(write(tmp_path / "r.json", entries), dataset)
    assert results.images.tolist() == [1, 0]
    assert results.class_ids.tolist() == [1, 0]
    for change, word in (({"file_name": "other.jpg"}, "other.jpg"), ({"category_name": "cow"}, "cow")):
        with pytest.raises(DataError, match=f"entry 1.*{word}"):
            Results.from_coco(write(tmp_path / "r.json", [GOOD, {**GOOD, **change}]), dataset)


def test_an_image_of_another_split_with_the_same_name_is_another_image(tmp_path, dataset):
    name = dataset.file_name(0)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / name).write_bytes(b"")
    paths = FlatStrings.of([str(tmp_path / "val" / dataset.file_name(i)) for i in range(2)])
    data = replace(dataset, root=tmp_path, paths=paths)
    for path in (tmp_path / "val" / name, tmp_path / "train" / ".." / "val" / name, "elsewhere/" + name):
        entries = [{**GOOD, "file_name": str(path)}]
        assert Results.from_coco(write(tmp_path / "r.json", entries), data).images.tolist() == [0]
    entries = [{**GOOD, "file_name": str(tmp_path / "train" / name)}]
    with pytest.raises(DataError, match="another split"):
        Results.from_coco(write(tmp_path / "r.json", entries), data)


def test_voc_files_of_a_class_whose_name_ends_anothers_are_told_apart(tmp_path, make_dataset):
    data = make_dataset([[], []], [[], []], names=("light", "traffic_light"), image_ids=[1, 2], size=(30, 40))
    stem = data.file_name(0).rpartition(".")[0]
    (tmp_path / "comp4_det_val_light.txt").write_text(f"{stem} 0.9 1 1 9 9\n")
    (tmp_path / "comp4_det_val_traffic_light.txt").write_text(f"{stem} 0.8 1 1 9 9\n")
    results = Results.from_voc(tmp_path, data)
    assert dict(zip(results.class_ids.tolist(), results.scores.tolist(), strict=True)) == {0: 0.9, 1: 0.8}
    assert len(results) == 2


def test_an_empty_list_is_no_detections(tmp_path, dataset):
    results = Results.from_coco(write(tmp_path / "r.json", []), dataset)
    assert len(results) == 0
    assert results.boxes.shape == (0, 4)


def test_round_trip_keeps_every_number(tmp_path, dataset):
    gathered = Accumulator()
    rng = np.random.default_rng(0)
    boxes = np.float32(rng.uniform(0, 9, (5, 4)).cumsum(axis=1))
    gathered.add(1, boxes, rng.random(5, dtype=np.float32), np.array([0, 1, 1, 0, 1]))
    results = gathered.results()
    again = Results.from_coco(write(tmp_path / "r.json", results.to_coco(dataset)), dataset)
    np.testing.assert_allclose(again.boxes, boxes, rtol=0, atol=1e-12)
    assert again.scores.tolist() == results.scores.tolist()
    assert again.class_ids.tolist() == results.class_ids.tolist()
    assert again.images.tolist() == [1] * 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 43}, ["entry 1", "image_id 43", "2 images"]),
        ({"image_id": "42"}, ["image_id '42'"]),
        ({"category_id": 5}, ["category_id 5", "[18, 3]"]),
        ({"category_id": None}, ["category_id None"]),
        ({"score": "0.5"}, ["score '0.5'"]),
        ({"score": True}, ["score True"]),
        ({"score": float("nan")}, ["score nan"]),
        ({"bbox": [1, 2, 3]}, ["bbox [1, 2, 3]", "four finite numbers"]),
        ({"bbox": [1, 2, "3", 4]}, ["bbox"]),
        ({"bbox": [1, 2, float("inf"), 4]}, ["bbox"]),
        ({"bbox": [1, 2, 10**400, 4]}, ["bbox"]),
        ({"bbox": None}, ["bbox None"]),
        ({"bbox": [100, 100, -50, 20]}, ["negative side", "not two corners"]),
        ({"segmentation": {"size": [9, 9], "counts": "41"}}, ["size"]),
        ({"segmentation": [[1, 2, 3]]}, ["a polygon is [1, 2, 3]"]),
        ({"segmentation": {"size": [30, 40], "counts": [5, 5]}}, ["add up to 10 pixels", "has 1200"]),
        ({"segmentation": {"size": [30, 40], "counts": "~~"}}, ["counts"]),
        ({"segmentation": {"size": [30, 40], "counts": [-5, 1205]}}, ["negative number -5"]),
        ({"segmentation": {"size": [30, 40], "counts": [5.0, 1195]}}, ["whole numbers"]),
    ],
)
def test_a_bad_entry_is_named(tmp_path, dataset, change, words):
    path = write(tmp_path / "r.json", [GOOD, {**GOOD, **change}])
    with pytest.raises(DataError) as caught:
        Results.from_coco(path, dataset)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[1, 2", "is no JSON"),
        ("[3]", "3 is no object"),
        ({"annotations": [], "images": []}, "'annotations', 'images'"),
        ("7", "int"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, dataset, content, word):
    path = write(tmp_path / "r.json", content)
    with pytest.raises(DataError, match=r"list of detections|no object") as caught:
        Results.from_coco(path, dataset)
    assert word in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        Results.from_coco(tmp_path / "absent.json", dataset)


def test_masks_compressed_or_as_numbers(tmp_path, dataset):
    plane = np.zeros((30, 40), np.uint8, order="F")
    plane[10:20, 5:25] = 1
    rle = mask_tools.encode(plane)
    as_text = {**rle, "counts": rle["counts"].decode()}
    as_numbers = {"size": [30, 40], "counts": [160, *([10, 20] * 20)[:-1], 460]}
    entries = [{**GOOD, "segmentation": as_text}, {**GOOD, "segmentation": as_numbers, "bbox": []}]
    results = Results.from_coco(write(tmp_path / "r.json", entries), dataset)
    assert [m["counts"] for m in results.masks] == [rle["counts"]] * 2
    assert results.boxes[1].tolist() == [5, 10, 25, 20]
    assert results.to_coco(dataset)[1]["segmentation"] == as_text

    with pytest.raises(DataError, match="1 of 2 entries"):
        Results.from_coco(write(tmp_path / "r.json", [entries[0], GOOD]), dataset)


def test_reads_the_files_of_the_voc_devkit(tmp_path, dataset):
    (tmp_path / "comp4_det_test_dog.txt").write_text("00001 0.9 1 1 10 20\n\n00002 0.5 3 4 5 6\n")
    (tmp_path / "comp4_det_test_cat.txt").write_text("00001 0.25 1.5 2.5 3.5 4.5\n")
    results = Results.from_voc(tmp_path, dataset)
    assert results.images.tolist() == [0, 1, 0]
    assert results.class_ids.tolist() == [0, 0, 1]
    assert results.scores.tolist() == [0.9, 0.5, 0.25]
    assert results.boxes.tolist() == [[0, 0, 10, 20], [2, 3, 5, 6], [0.5, 1.5, 3.5, 4.5]]


@pytest.mark.parametrize(
    ("line", "words"),
    [("00001 0.9 1 1 10", "line 1"), ("00001 nan 1 1 10 20", "line 1"), ("00009 0.9 1 1 10 20", "no image '00009'")],
)
def test_a_bad_line_of_voc_is_named(tmp_path, dataset, line, words):
    (tmp_path / "comp4_det_test_dog.txt").write_text(line)
    with pytest.raises(DataError, match=words):
        Results.from_voc(tmp_path, dataset)


def test_a_folder_without_voc_results_is_named(tmp_path, dataset):
    with pytest.raises(DataError, match="comp4_det"):
        Results.from_voc(tmp_path, dataset)


def test_accumulator_keeps_the_order_of_adding():
    gathered = Accumulator()
    gathered.add(3, np.ones((2, 4), np.float32), np.array([0.5, 0.25], np.float32), np.array([1, 0]))
    gathered.add(1, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    gathered.add(0, np.zeros((1, 4), np.float32), np.array([0.1], np.float32), np.array([2]))
    results = gathered.results()
    assert results.images.tolist() == [3, 3, 0]
    assert results.class_ids.tolist() == [1, 0, 2]
    assert results.masks is None
    assert len(Accumulator().results()) == 0
