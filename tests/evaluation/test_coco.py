"""COCO's numbers against pycocotools, the published fake results, and literal values."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from twostage.evaluation.coco import coco_scores
from twostage.evaluation.results import Results

NAMES = ("ant", "bee", "cat")
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def as_coco_json(dataset, masks=False):
    """The data set as the document that pycocotools reads."""
    images = [{"id": int(i), "height": int(h), "width": int(w)} for i, (h, w) in zip(dataset.image_ids, dataset.sizes)]
    owner = np.repeat(dataset.image_ids, np.diff(dataset.offsets))
    rles = [rle for i in range(len(dataset)) for rle in dataset.masks_of(i)]
    annotations = []
    for row, (x1, y1, x2, y2) in enumerate(dataset.boxes.astype(np.float64)):
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
    categories = [{"id": int(c), "name": n} for c, n in zip(dataset.category_ids, dataset.names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def judge(dataset, results, *, kind="bbox", limits=(1, 10, 100), class_blind=False):
    """pycocotools' arrays and twelve numbers."""
    entries = results.to_coco(dataset)
    if kind == "segm":
        # With a bbox in the entries pycocotools takes the box's area for the mask's.
        for entry in entries:
            del entry["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = as_coco_json(dataset, masks=kind == "segm")
        truth.createIndex()
        found = truth.loadRes(entries) if entries else empty_results(truth)
        evaluator = COCOeval(truth, found, kind)
        evaluator.params.maxDets = list(limits)
        evaluator.params.useCats = not class_blind
        evaluator.evaluate()
        evaluator.accumulate()
        if limits == (1, 10, 100):
            evaluator.summarize()
    return evaluator


def empty_results(truth):
    """pycocotools' loadRes refuses an empty list."""
    found = COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found


def random_case(make_dataset, seed, *, images=6, masks=False, size=140):
    """A data set and results full of trouble: ties, crowds, duplicates, empty images, unsorted ids, borderline areas."""
    rng = np.random.default_rng(seed)

    def random_boxes(n):
        # Whole and half pixels: many IoUs and areas fall exactly on a threshold.
        corner = rng.integers(0, size - 2, (n, 2)) / rng.choice([1, 2])
        sides = rng.choice([8, 16, 32, 33, 48, 64, 96, 97, 120], (n, 2))
        return np.concatenate([corner, np.minimum(corner + sides, size)], axis=1)

    boxes_of, labels_of, found = [], [], []
    for image in range(images):
        truth = random_boxes(rng.integers(0, 9) * (rng.random() < 0.8))
        labels = rng.integers(0, len(NAMES), len(truth))
        boxes_of.append(truth.tolist())
        labels_of.append(labels.tolist())
        n = rng.integers(0, 25) * (rng.random() < 0.8)
        boxes = random_boxes(n)
        classes = rng.integers(0, len(NAMES), n)
        if len(truth) and n:
            copied = rng.random(n) < 0.6
            source = rng.integers(0, len(truth), n)
            moved = truth[source] + rng.integers(-3, 4, (n, 4))
            boxes[copied] = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), moved.max(axis=1)[:, None].repeat(2, 1)], 1)[copied] if False else np.stack([np.minimum(moved[:, 0], moved[:, 2]), np.minimum(moved[:, 1], moved[:, 3]), np.maximum(moved[:, 0], moved[:, 2]) + 1, np.maximum(moved[:, 1], moved[:, 3]) + 1], axis=1)[copied]
            classes[copied] = np.where(rng.random(copied.sum()) < 0.85, labels[source[copied]], classes[copied])
        found.append((image, boxes, rng.integers(1, 6, n) / 5, classes))
    total = sum(map(len, boxes_of))
    dataset = make_dataset(
        boxes_of,
        labels_of,
        names=NAMES,
        size=(size, size),
        crowd=(rng.random(total) < 0.2).tolist(),
        areas=rng.choice([100.0, 1024.0, 1024.5, 9216.0, 20000.0], total).tolist(),
        masks=[rle_of(b, size) for boxes in boxes_of for b in boxes] if masks else None,
        image_ids=rng.permutation(1000)[:images].tolist(),
        category_ids=rng.permutation(90)[: len(NAMES)].tolist(),
    )
    order = rng.permutation(images)
    parts = [found[i] for i in order]
    results = Results(
        images=np.concatenate([np.full(len(p[1]), p[0], dtype=np.int64) for p in parts]),
        boxes=np.concatenate([p[1] for p in parts]).astype(np.float64),
        scores=np.concatenate([p[2] for p in parts]).astype(np.float64),
        class_ids=np.concatenate([p[3] for p in parts]).astype(np.int64),
        masks=[rle_of(b, size) for p in parts for b in p[1]] if masks else None,
    )
    return dataset, results


def rle_of(box, size):
    """An ellipse in the box, as COCO's RLE."""
    y, x = np.mgrid[:size, :size]
    cx, cy, w, h = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    inside = ((x + 0.5 - cx) / (w / 2)) ** 2 + ((y + 0.5 - cy) / (h / 2)) ** 2 <= 1
    return mask_tools.encode(np.asfortranarray(inside.astype(np.uint8)))


def assert_equal(ours, theirs, category_ids, *, class_blind=False):
    """Every cell of the arrays, and the printed numbers."""
    columns = [0] if class_blind else np.argsort(np.argsort(category_ids))
    shape = ours.recall.shape
    np.testing.assert_allclose(ours.precision, theirs.eval["precision"].reshape(ours.precision.shape)[:, :, columns], atol=1e-9)
    np.testing.assert_allclose(ours.scores, theirs.eval["scores"].reshape(ours.scores.shape)[:, :, columns], atol=1e-9)
    np.testing.assert_allclose(ours.recall, theirs.eval["recall"].reshape(shape)[:, columns], atol=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_boxes_equal_pycocotools(make_dataset, seed):
    dataset, results = random_case(make_dataset, seed)
    ours, theirs = coco_scores(dataset, results), judge(dataset, results)
    assert_equal(ours, theirs, dataset.category_ids)
    np.testing.assert_allclose([ours.summary()[k] for k in KEYS], theirs.stats, atol=1e-9)
