"""Curves against the numbers they must agree with."""

import numpy as np
import pytest

from twostage.evaluation.coco import coco_scores
from twostage.evaluation.curves import class_curves
from twostage.evaluation.results import Results


@pytest.fixture
def case(make_dataset):
    """Two cats, found at 0.9 and 0.6, with a false one at 0.7 between; a dog not found; no bird."""
    truth = [[0, 0, 50, 50], [100, 100, 150, 150], [200, 200, 250, 250]]
    dataset = make_dataset([truth], [[0, 0, 1]], names=("cat", "dog", "bird"))
    boxes = np.array([truth[0], [300, 300, 350, 350], truth[1]], float)
    return dataset, Results(np.zeros(3, np.int64), boxes, np.array([0.9, 0.7, 0.6]), np.zeros(3, np.int64))


def test_precision_averages_to_ap50(case):
    scores = coco_scores(*case)
    curves = class_curves(*case, scores)
    expected = [scores.summary(k)["AP50"] for k in range(3)]
    np.testing.assert_allclose(curves.average_precision(), expected)
    assert curves.defined.tolist() == [True, True, False]
    assert curves.precision[0, 50] == 1
    assert curves.precision[0, 51] == pytest.approx(2 / 3)


def test_f1_is_of_what_is_kept_at_a_confidence(case):
    curves = class_curves(*case, coco_scores(*case))
    at = {c: curves.f1[0, round(100 * c)] for c in (0.5, 0.65, 0.8, 0.95)}
    assert at == pytest.approx({0.5: 4 / 5, 0.65: 1 / 2, 0.8: 2 / 3, 0.95: 0})
    assert curves.f1[1:].max() == 0
    confidence, best = curves.best_confidence()
    assert confidence <= 0.6
    assert best == pytest.approx(0.8 / 2)


def test_other_iou_thresholds(case):
    scores = coco_scores(*case)
    assert class_curves(*case, scores, iou=0.75).iou == 0.75


def test_no_objects_at_all(make_dataset):
    dataset = make_dataset([[]], [[]], names=("cat",))
    none = Results(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    assert class_curves(dataset, none, coco_scores(dataset, none)).best_confidence() == (0, -1)
