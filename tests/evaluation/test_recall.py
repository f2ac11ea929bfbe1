"""Proposal recall against pycocotools, mmdetection's literal values, and across the blocks it works in."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from twostage.evaluation import recall as recall_module
from twostage.evaluation.recall import proposal_recall
from twostage.evaluation.results import Accumulator, Results


def random_case(make_dataset, seed, *, images=5):
    rng = np.random.default_rng(seed)

    def boxes(n):
        low = rng.integers(0, 300, (n, 2))
        return np.concatenate([low, low + rng.choice([10, 30, 60, 98, 150], (n, 2))], axis=1).astype(float)

    truth = [boxes(rng.integers(0, 7)) for _ in range(images)]
    total = sum(map(len, truth))
    dataset = make_dataset(
        [b.tolist() for b in truth],
        [rng.integers(0, 3, len(b)).tolist() for b in truth],
        names=("a", "b", "c"),
        crowd=(rng.random(total) < 0.2).tolist(),
    )
    gathered = Accumulator()
    for i in range(images):
        near = np.repeat(truth[i], 3, axis=0)
        found = np.concatenate([near + rng.integers(-9, 10, near.shape), boxes(20)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        gathered.add(i, found, rng.integers(1, 9, len(found)) / 9, np.zeros(len(found), np.int64))
    return dataset, gathered.results()


def judge(dataset, proposals, counts):
    """pycocotools' recall with useCats = 0."""
    owner = np.repeat(dataset.image_ids, np.diff(dataset.offsets)).tolist()
    boxes = np.concatenate([dataset.boxes[:, :2], dataset.boxes[:, 2:] - dataset.boxes[:, :2]], axis=1).astype(float)
    truth, found = COCO(), COCO()
    truth.dataset = {
        "images": [{"id": i} for i in dataset.image_ids.tolist()],
        "categories": [{"id": c} for c in dataset.category_ids.tolist()],
        "annotations": [
            {
                "id": n + 1,
                "image_id": i,
                "category_id": int(label) + 1,
                "bbox": b,
                "area": b[2] * b[3],
                "iscrowd": int(c),
            }
            for n, (i, label, b, c) in enumerate(zip(owner, dataset.labels, boxes.tolist(), dataset.crowd, strict=True))
        ],
    }
    truth.createIndex()
    found = truth.loadRes(proposals.to_coco(dataset))
    evaluator = COCOeval(truth, found, "bbox")
    evaluator.params.useCats = 0
    evaluator.params.maxDets = list(counts)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["recall"][:, 0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("block", [500_000, 30])
def test_recall_equals_pycocotools(make_dataset, monkeypatch, seed, block):
    """Also when the images are worked off one or two at a time."""
    monkeypatch.setattr(recall_module, "_BLOCK", block)
    dataset, proposals = random_case(make_dataset, seed)
    counts = (3, 10, 30)
    ours = proposal_recall(dataset, proposals, counts=counts)
    np.testing.assert_allclose(ours.recall, judge(dataset, proposals, counts), rtol=0, atol=1e-9)


def test_literal_values_of_mmdetection(make_dataset):
    """test_coco_metric.py: AR@2 0.5, AR@4 1.0 for four objects, each found exactly, in order of score."""
    boxes = [[50, 60, 70, 80], [100, 120, 130, 150], [150, 160, 190, 200], [250, 260, 350, 360]]
    dataset = make_dataset([boxes], [[0, 0, 1, 0]], names=("car", "bicycle"), size=(640, 640))
    scores = np.array([1.0, 0.98, 0.96, 0.95])
    proposals = Results(np.zeros(4, np.int64), np.array(boxes, float), scores, np.array([0, 0, 1, 0]))
    found = proposal_recall(dataset, proposals, counts=(2, 4))
    assert (found.at(2), found.at(4)) == (0.5, 1.0)
    assert proposal_recall(dataset, proposals).summary() == {
        **dict.fromkeys(("AR100", "AR300", "AR1000", "ARs", "ARm", "ARl", "R50@1000"), 1.0),
    }


def test_recall_at_one_threshold_and_size(make_dataset):
    """Two objects: a small one met at IoU 0.6, a large one at 0.9."""
    dataset = make_dataset([[[0, 0, 10, 10], [100, 100, 200, 200]]], [[0, 0]])
    boxes = np.array([[0.0, 0, 10, 6], [100, 100, 200, 190]])
    proposals = Results(np.zeros(2, np.int64), boxes, np.array([0.5, 0.4]), np.zeros(2, np.int64))
    found = proposal_recall(dataset, proposals)
    assert found.at(100, iou=0.5) == 1
    assert found.at(100, iou=0.7) == 0.5
    assert found.at(100, iou=0.7, size="small") == 0
    assert found.at(100, size="medium") == -1
    assert found.at(1000) == pytest.approx((3 / 10 + 9 / 10) / 2)


def test_difficult_objects_are_left_out_and_nothing_proposed_is_zero(make_dataset):
    dataset = make_dataset([[[0, 0, 50, 50], [60, 60, 90, 90]], []], [[0, 0], []], difficult=[False, True])
    proposals = Results(np.zeros(1, np.int64), np.array([[0.0, 0, 50, 50]]), np.array([0.5]), np.zeros(1, np.int64))
    assert proposal_recall(dataset, proposals).at(100) == 1
    assert proposal_recall(dataset, Accumulator().results()).at(100) == 0
    assert proposal_recall(make_dataset([[]], [[]]), proposals).at(100) == -1
