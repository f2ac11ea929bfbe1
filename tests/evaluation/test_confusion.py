"""The confusion matrix by hand-made cases and by its sums."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twostage.evaluation.confusion import confusion_matrix
from twostage.evaluation.results import Results

NAMES = ("cat", "dog")


def results_of(rows):
    """Rows of image, box, score, class id."""
    return Results(
        np.array([r[0] for r in rows], np.int64),
        np.array([r[1] for r in rows], float).reshape(-1, 4),
        np.array([r[2] for r in rows], float),
        np.array([r[3] for r in rows], np.int64),
    )


def test_right_wrong_missed_and_invented(make_dataset):
    a, b, c = [0, 0, 50, 50], [100, 100, 150, 150], [200, 200, 250, 250]
    dataset = make_dataset([[a, b, c], []], [[0, 0, 1], []], names=NAMES)
    rows = [(0, a, 0.9, 0), (0, b, 0.9, 1), (0, [300, 300, 350, 350], 0.9, 0), (1, a, 0.9, 1)]
    matrix = confusion_matrix(dataset, results_of(rows))
    assert matrix.counts.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]


def test_detections_below_the_confidence_or_the_iou_do_not_match(make_dataset):
    dataset = make_dataset([[[0, 0, 50, 50]]], [[0]], names=NAMES)
    rows = [(0, [0, 0, 50, 50], 0.4, 0), (0, [0, 0, 50, 24], 0.8, 0)]
    assert confusion_matrix(dataset, results_of(rows)).counts.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert confusion_matrix(dataset, results_of(rows), conf=0.4, iou=0.3).counts[0, 0] == 1


def test_the_best_score_chooses_first_and_each_object_is_taken_once(make_dataset):
    dataset = make_dataset([[[0, 0, 50, 50]]], [[0]], names=NAMES)
    rows = [(0, [0, 0, 50, 50], 0.7, 0), (0, [0, 0, 50, 40], 0.8, 1)]
    assert confusion_matrix(dataset, results_of(rows)).counts.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_among_equal_overlaps_the_own_class_is_taken(make_dataset):
    box = [0, 0, 50, 50]
    dataset = make_dataset([[box, box]], [[0, 1]], names=NAMES)
    matrix = confusion_matrix(dataset, results_of([(0, box, 0.9, 1), (0, box, 0.8, 0)]))
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_crowds_and_difficult_objects_are_left_out(make_dataset):
    boxes = [[0, 0, 100, 100], [200, 200, 250, 250]]
    for kind in ("crowd", "difficult"):
        dataset = make_dataset([boxes], [[0, 1]], names=NAMES, **{kind: [True, False]})
        rows = [(0, [10, 10, 30, 30], 0.9, 0), (0, [200, 200, 250, 250], 0.8, 1)]
        assert confusion_matrix(dataset, results_of(rows)).counts.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_sum_to_objects_and_columns_to_detections(make_dataset, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 40, (12, 2))
    boxes = np.concatenate([low, low + rng.integers(5, 30, (12, 2))], axis=1).tolist()
    labels = rng.integers(0, 2, 12).tolist()
    dataset = make_dataset([boxes[:5], boxes[5:]], [labels[:5], labels[5:]], names=NAMES)
    found = [
        (int(rng.integers(0, 2)), boxes[rng.integers(0, 12)], rng.random(), int(rng.integers(0, 2))) for _ in range(20)
    ]
    counts = confusion_matrix(dataset, results_of(found)).counts
    assert counts.sum(axis=1)[:2].tolist() == np.bincount(labels, minlength=2).tolist()
    kept = [f[3] for f in found if f[2] >= 0.5]
    assert counts.sum(axis=0)[:2].tolist() == np.bincount(kept, minlength=2).tolist()
    assert counts[2, 2] == 0
