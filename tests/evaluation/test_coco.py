"""COCO's numbers against pycocotools, the published fake results, and literal values of other projects' tests."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from twostage.data.recognise import open_dataset
from twostage.evaluation.coco import SIZES, coco_scores
from twostage.evaluation.results import Accumulator, Results
from twostage.evaluation.voc import voc_scores

NAMES = ("ant", "bee", "cat")
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZE = 140


def as_coco_json(dataset, *, masks=False):
    """The data set as the document that pycocotools reads."""
    sizes = zip(dataset.image_ids.tolist(), dataset.sizes.tolist(), strict=True)
    owner = np.repeat(dataset.image_ids, np.diff(dataset.offsets))
    rles = [rle for i in range(len(dataset)) for rle in dataset.masks_of(i)]
    annotations = []
    for row, (x1, y1, x2, y2) in enumerate(dataset.boxes.astype(np.float64).tolist()):
        annotations.append(
            {
                "id": int(dataset.annotation_ids[row]),
                "image_id": int(owner[row]),
                "category_id": int(dataset.category_ids[dataset.labels[row]]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(dataset.areas[row]),
                "iscrowd": int(dataset.crowd[row]),
            }
        )
        if masks:
            annotations[-1]["segmentation"] = rles[row]
    return {
        "images": [{"id": number, "height": h, "width": w} for number, (h, w) in sizes],
        "annotations": annotations,
        "categories": [{"id": int(c), "name": n} for c, n in zip(dataset.category_ids, dataset.names, strict=True)],
    }


def judge(document, entries, *, kind="bbox", limits=(1, 10, 100), class_blind=False):
    """pycocotools' evaluator after its work."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, empty = COCO(), COCO()
        truth.dataset, empty.dataset = document, {**document, "annotations": []}
        truth.createIndex()
        empty.createIndex()
        # Its loadRes refuses an empty list.
        evaluator = COCOeval(truth, truth.loadRes(entries) if entries else empty, kind)
        evaluator.params.maxDets = list(limits)
        evaluator.params.useCats = int(not class_blind)
        evaluator.evaluate()
        evaluator.accumulate()
        if limits == (1, 10, 100):
            evaluator.summarize()
    return evaluator


def random_boxes(rng, n):
    """Whole and half pixels, so that many IoUs and areas fall exactly on a threshold."""
    corner = rng.integers(0, SIZE - 2, (n, 2)) / rng.choice([1, 2])
    sides = rng.choice([8, 16, 32, 33, 48, 64, 96, 97, 120], (n, 2))
    return np.concatenate([corner, np.minimum(corner + sides, SIZE)], axis=1)


def random_found(rng, truth, labels):
    """Detections near the truth, beside it and of wrong classes, with many equal scores."""
    n = int(rng.integers(0, 25) * (rng.random() < 0.8))
    boxes, classes = random_boxes(rng, n), rng.integers(0, len(NAMES), n)
    if len(truth):
        source = rng.integers(0, len(truth), n)
        moved = truth[source] + rng.integers(-3, 4, (n, 4))
        low, high = np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:]) + 1
        near = rng.random(n) < 0.6
        boxes[near] = np.concatenate([low, high], axis=1)[near]
        classes = np.where(near & (rng.random(n) < 0.85), labels[source], classes)
    return boxes, rng.integers(1, 6, n) / 5, classes


def random_case(make_dataset, seed, *, images=6, masks=False):
    """A data set and results full of trouble: ties, crowds, empty images, unsorted ids, borderline areas."""
    rng = np.random.default_rng(seed)
    truths = [random_boxes(rng, int(rng.integers(0, 9) * (rng.random() < 0.8))) for _ in range(images)]
    labels = [rng.integers(0, len(NAMES), len(boxes)) for boxes in truths]
    total = sum(map(len, truths))
    dataset = make_dataset(
        [boxes.tolist() for boxes in truths],
        [ids.tolist() for ids in labels],
        names=NAMES,
        size=(SIZE, SIZE),
        crowd=(rng.random(total) < 0.2).tolist(),
        areas=rng.choice([100.0, 1024.0, 1024.5, 9216.0, 20000.0], total).tolist(),
        masks=[rle_of(box) for boxes in truths for box in boxes] if masks else None,
        image_ids=rng.permutation(1000)[:images].tolist(),
        category_ids=rng.permutation(90)[: len(NAMES)].tolist(),
    )
    gathered = Accumulator()
    for i in rng.permutation(images).tolist():
        found = random_found(rng, truths[i], labels[i])
        gathered.add(i, *found, masks=[rle_of(box) for box in found[0]] if masks else None)
    return dataset, gathered.results()


def rle_of(box):
    """An ellipse in the box, as COCO's RLE."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    cx, cy, w, h = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    inside = ((x - cx) / (w / 2)) ** 2 + ((y - cy) / (h / 2)) ** 2 <= 1
    return mask_tools.encode(np.asfortranarray(inside.astype(np.uint8)))


def assert_equal(ours, theirs, category_ids):
    """Every cell of the arrays; pycocotools' columns are in the order of category ids."""
    columns = np.argsort(np.argsort(category_ids))
    for key in ("precision", "scores", "recall"):
        cells = np.take(theirs.eval[key], columns, axis=-3)
        np.testing.assert_allclose(getattr(ours, key), cells, rtol=0, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("seed", range(40))
def test_boxes_equal_pycocotools(make_dataset, seed):
    dataset, results = random_case(make_dataset, seed)
    ours, theirs = coco_scores(dataset, results), judge(as_coco_json(dataset), results.to_coco(dataset))
    assert_equal(ours, theirs, dataset.category_ids)
    np.testing.assert_allclose([ours.summary()[k] for k in KEYS], theirs.stats, rtol=0, atol=1e-9)


@pytest.mark.parametrize("block", [1, 7, 20])
def test_classes_scored_a_few_at_a_time_equal_pycocotools(make_dataset, monkeypatch, block):
    monkeypatch.setattr("twostage.evaluation.coco._BLOCK", block)
    dataset, results = random_case(make_dataset, 3)
    ours, theirs = coco_scores(dataset, results), judge(as_coco_json(dataset), results.to_coco(dataset))
    assert_equal(ours, theirs, dataset.category_ids)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 4))
def test_boxes_equal_pycocotools_whatever_the_seed(make_dataset, seed, images):
    dataset, results = random_case(make_dataset, seed, images=images)
    theirs = judge(as_coco_json(dataset), results.to_coco(dataset))
    assert_equal(coco_scores(dataset, results), theirs, dataset.category_ids)


@pytest.mark.parametrize("seed", range(6))
def test_masks_equal_pycocotools(make_dataset, seed):
    dataset, results = random_case(make_dataset, seed, images=3, masks=True)
    entries = results.to_coco(dataset)
    for entry in entries:
        del entry["bbox"]  # with it pycocotools would take the box's area for the mask's
    ours, theirs = (
        coco_scores(dataset, results, masks=True),
        judge(as_coco_json(dataset, masks=True), entries, kind="segm"),
    )
    assert_equal(ours, theirs, dataset.category_ids)


@pytest.mark.parametrize(("score", "key"), [(coco_scores, "AP"), (voc_scores, "voc12")])
def test_what_lies_where_a_mask_is_lacking_is_neither_right_nor_wrong(make_dataset, score, key):
    boxes = [[0, 0, 40, 40], [60, 60, 120, 120]]
    found = np.array([[60.0, 60, 120, 120], [0, 0, 40, 40]])
    results = Results(
        np.zeros(2, np.int64), found, np.array([0.9, 0.8]), np.zeros(2, np.int64), [rle_of(box) for box in found]
    )
    lacking = make_dataset([boxes], [[0, 0]], size=(SIZE, SIZE), masks=[rle_of(boxes[0]), None])
    assert score(lacking, results, masks=True).summary()[key] == 1
    elsewhere = make_dataset([boxes[:1]], [[0]], size=(SIZE, SIZE), masks=[rle_of(boxes[0])])
    assert score(elsewhere, results, masks=True).summary()[key] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(6))
def test_class_blind_equals_pycocotools_without_categories(make_dataset, seed):
    dataset, results = random_case(make_dataset, seed)
    limits = (2, 5, 20)
    ours = coco_scores(dataset, results, class_blind=True, max_detections=limits)
    theirs = judge(as_coco_json(dataset), results.to_coco(dataset), limits=limits, class_blind=True)
    assert_equal(ours, theirs, [1])


def nothing():
    return Accumulator().results()


def test_no_detections_give_zero_and_no_objects_give_minus_one(make_dataset):
    dataset = make_dataset([[[0, 0, 50, 50]], []], [[1], []], names=NAMES)
    summary = coco_scores(dataset, nothing()).summary
    assert summary()["AP"] == summary(1)["AP"] == 0
    assert summary(0)["AP"] == summary(2)["AR100"] == summary()["APs"] == -1

    found = Results(np.array([0]), np.array([[0.0, 0, 50, 50]]), np.array([0.9]), np.array([1]))
    empty = coco_scores(make_dataset([[]], [[]], names=NAMES), found)
    assert set(empty.summary().values()) == {-1.0}
    assert np.isfinite(empty.precision).all()


def test_a_data_set_without_images_is_undefined(make_dataset):
    assert set(coco_scores(make_dataset([], []), nothing()).summary().values()) == {-1.0}


def test_large_image_ids_are_told_apart(make_dataset):
    """2 ** 60 and 2 ** 60 + 1 are one number in double precision."""
    box = [0, 0, 50, 50]
    dataset = make_dataset([[box], [box]], [[0], [0]], image_ids=[2**60 + 1, 2**60])
    found = Results(np.array([0, 0]), np.array([box, box], float), np.array([0.9, 0.8]), np.zeros(2, np.int64))
    ours = coco_scores(dataset, found)
    assert_equal(ours, judge(as_coco_json(dataset), found.to_coco(dataset)), [1])
    assert ours.summary()["AR100"] == 0.5


def test_ap90_is_the_precision_at_iou_090(make_dataset):
    """One of two objects is met at IoU 0.92, the other at 0.85."""
    dataset = make_dataset([[[0, 0, 100, 100], [200, 200, 300, 300]]], [[0, 0]])
    boxes = np.array([[0.0, 0, 100, 92], [200, 200, 300, 285]])
    found = Results(np.zeros(2, np.int64), boxes, np.array([0.9, 0.8]), np.zeros(2, np.int64))
    summary = coco_scores(dataset, found).summary()
    assert summary["AP90"] == pytest.approx(51 / 101)
    assert summary["AP50"] == 1
    # 1 up to 0.85, 51/101 at 0.90, 0 at 0.95
    assert summary["AP"] == pytest.approx((8 + 51 / 101) / 10)


def test_the_perfect_detector_of_mmdetection_scores_one(make_dataset):
    """mmdetection, test_coco_metric.py: four boxes found exactly; sizes by the annotations' areas."""
    boxes = [[50, 60, 70, 80], [100, 120, 130, 150], [150, 160, 190, 200], [250, 260, 350, 360]]
    dataset = make_dataset([boxes], [[0, 0, 1, 0]], names=("car", "bicycle"), size=(640, 640))
    scores = np.array([1.0, 0.98, 0.96, 0.95])
    found = Results(np.zeros(4, np.int64), np.array(boxes, float), scores, np.array([0, 0, 1, 0]))
    summary = coco_scores(dataset, found).summary()
    assert [summary[k] for k in ("AP", "AP50", "AP75", "APs", "APm", "APl")] == [1.0] * 6


def test_a_difficult_object_costs_and_earns_nothing(make_dataset):
    """Neither missed nor found, even twice; a small box inside it is a false positive as anywhere else."""
    boxes = [[0, 0, 100, 100], [200, 200, 300, 300]]
    dataset = make_dataset([boxes], [[0, 0]], difficult=[False, True])
    found = np.array([[200.0, 200, 300, 300], [205, 200, 300, 300], [0, 0, 100, 100]])
    results = Results(np.zeros(3, np.int64), found, np.array([0.9, 0.8, 0.7]), np.zeros(3, np.int64))
    assert coco_scores(dataset, results).summary()["AP50"] == 1

    found[0] = [210, 210, 220, 220]
    results = Results(np.zeros(3, np.int64), found, np.array([0.9, 0.8, 0.7]), np.zeros(3, np.int64))
    assert coco_scores(dataset, results).summary()["AP50"] == pytest.approx(0.5)


def test_a_crowd_takes_any_box_inside_it(make_dataset):
    dataset = make_dataset([[[0, 0, 100, 100], [200, 200, 300, 300]]], [[0, 0]], crowd=[False, True])
    found = np.array([[210.0, 210, 220, 220], [230, 230, 260, 260], [0, 0, 100, 100]])
    results = Results(np.zeros(3, np.int64), found, np.array([0.9, 0.8, 0.7]), np.zeros(3, np.int64))
    assert coco_scores(dataset, results).summary()["AP50"] == 1


def test_sizes_follow_the_annotated_area_not_the_box(make_dataset):
    dataset = make_dataset([[[0, 0, 200, 200]]], [[0]], areas=[500.0])
    found = Results(np.zeros(1, np.int64), np.array([[0.0, 0, 200, 200]]), np.array([0.9]), np.zeros(1, np.int64))
    scores = coco_scores(dataset, found)
    assert {size: scores.average_precision(size=size) for size in SIZES} == {
        "all": 1.0,
        "small": 1.0,
        "medium": -1.0,
        "large": -1.0,
    }


@pytest.fixture(scope="module")
def fake100():
    root = os.environ.get("TWOSTAGE_DATA")
    if not root:
        pytest.skip("TWOSTAGE_DATA is not set: no COCO oracle")
    return Path(root) / "oracles" / "coco-fake100"


def test_the_published_fake_results_to_all_printed_digits(fake100):
    dataset = open_fake100(fake100)
    summary = coco_scores(dataset, Results.from_coco(fake100 / "detections_bbox.json", dataset)).summary()
    expected = json.loads((fake100 / "expected.json").read_text())["bbox"]
    assert {key: round(summary[key], 3) for key in expected} == expected


def test_the_fake_results_equal_pycocotools_on_the_files_themselves(fake100):
    """From the JSON as it is, not from our arrays: float32 boxes of the data set change no match."""
    dataset = open_fake100(fake100)
    ours = coco_scores(dataset, Results.from_coco(fake100 / "detections_bbox.json", dataset))
    document, entries = (
        json.loads((fake100 / name).read_text()) for name in ("annotations.json", "detections_bbox.json")
    )
    theirs = judge(document, entries)
    assert_equal(ours, theirs, dataset.category_ids)
    np.testing.assert_allclose([ours.summary()[k] for k in KEYS], theirs.stats, rtol=0, atol=1e-9)


def open_fake100(folder):
    return open_dataset(folder / "annotations.json", split="annotations", require_images=False)


@pytest.mark.parametrize("seed", range(5))
def test_files_with_decimals_equal_pycocotools_at_exact_thresholds(tmp_path, seed):
    """Every IoU is a threshold in real arithmetic; the side it falls on comes of rounding the file's own numbers."""
    rng = np.random.default_rng(seed)
    truth = np.round(rng.uniform(1, 300, (60, 4)), 2)
    annotations = [
        {"id": i + 1, "image_id": i % 4, "category_id": 7, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(truth.tolist())
    ]
    share = rng.choice(np.arange(50, 100, 5), 60) / 100
    found = np.round(np.column_stack([truth[:, :2], truth[:, 2] * share, truth[:, 3]]), 4)
    entries = [
        {"image_id": i % 4, "category_id": 7, "bbox": box, "score": score}
        for i, (box, score) in enumerate(zip(found.tolist(), rng.integers(1, 9, 60).tolist(), strict=True))
    ]
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 700, "width": 700} for i in range(4)],
        "categories": [{"id": 7, "name": "ant"}],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "found.json").write_text(json.dumps(entries))
    dataset = open_dataset(tmp_path / "truth.json", split="truth", require_images=False)
    ours = coco_scores(dataset, Results.from_coco(tmp_path / "found.json", dataset))
    assert_equal(ours, judge(document, entries), [7])


@pytest.mark.parametrize("seed", range(5))
def test_boxes_of_a_network_equal_pycocotools(make_dataset, seed):
    """Float32 numbers that are no decimals, on both sides."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 300, (40, 2))
    truth = np.concatenate([corner, corner + rng.uniform(5, 100, (40, 2))], axis=1)
    dataset = make_dataset(truth.reshape(4, 10, 4).tolist(), [[0] * 10] * 4)
    gathered = Accumulator()
    for i in range(4):
        boxes = np.float32(truth[10 * i : 10 * i + 10] + rng.normal(0, 3, (10, 4)))
        gathered.add(i, boxes, rng.random(10, dtype=np.float32), np.zeros(10, np.int64))
    results = gathered.results()
    assert_equal(coco_scores(dataset, results), judge(as_coco_json(dataset), results.to_coco(dataset)), [1])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_real_photos_equal_pycocotools_on_the_files_themselves(tmp_path, kind):
    """70 photos with polygons and crowds; found are their own masks, moved by some pixels, some of another class."""
    root = os.environ.get("TWOSTAGE_DATA")
    if not root:
        pytest.skip("TWOSTAGE_DATA is not set: no photos")
    folder = Path(root) / "data" / "coco-photos"
    document = json.loads((folder / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    rng = np.random.default_rng(0)
    entries = []
    for annotation in document["annotations"]:
        shape = annotation["segmentation"]
        height, width = sizes[annotation["image_id"]]
        runs = mask_tools.frPyObjects(shape, height, width)
        plane = coco_mask.decode(mask_tools.merge(runs) if isinstance(shape, list) else runs)
        moved = np.asfortranarray(np.roll(plane, rng.integers(-4, 5, 2), axis=(0, 1)))
        rle = mask_tools.encode(moved)
        entry = {"image_id": annotation["image_id"], "category_id": annotation["category_id"]}
        entry["score"] = float(rng.integers(1, 20) / 20)
        if rng.random() < 0.1:
            entry["category_id"] = document["annotations"][0]["category_id"]
        if kind == "bbox":
            entry["bbox"] = mask_tools.toBbox(rle).tolist()
        else:
            entry["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        entries.append(entry)
    (tmp_path / "found.json").write_text(json.dumps(entries))
    dataset = open_dataset(folder / "instances.json", split="instances", require_images=False)
    ours = coco_scores(dataset, Results.from_coco(tmp_path / "found.json", dataset), masks=kind == "segm")
    theirs = judge(json.loads((folder / "instances.json").read_text()), entries, kind=kind)
    assert_equal(ours, theirs, dataset.category_ids)
    np.testing.assert_allclose([ours.summary()[k] for k in KEYS], theirs.stats, rtol=0, atol=1e-9)
