"""VOC's average precision against the shared sample, literal values of chainercv's tests, and a plain loop."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twostage.evaluation.results import Accumulator, Results
from twostage.evaluation.voc import all_point_ap, eleven_point_ap, match_by_voc, voc_scores


def collect(*images):
    """Results from (boxes, scores, class_ids) of each image."""
    gathered = Accumulator()
    for i, (boxes, scores, class_ids) in enumerate(images):
        gathered.add(i, np.array(boxes, float).reshape(-1, 4), np.array(scores, float), np.array(class_ids, np.int64))
    return gathered.results()


@pytest.fixture(scope="module")
def sample():
    root = os.environ.get("TWOSTAGE_DATA")
    if not root:
        pytest.skip("TWOSTAGE_DATA is not set: no VOC oracle")
    return Path(root) / "oracles" / "voc-sample"


def inclusive_boxes(columns):
    """x, y, width, height with the corner (x + width, y + height) included, on half-open edges."""
    x, y, w, h = np.array(columns, float).reshape(-1, 4).T
    return np.stack([x, y, x + w + 1, y + h + 1], axis=1)


def load_sample(folder, make_dataset):
    def rows(path):
        return [line.split()[1:] for line in path.read_text().splitlines() if line.strip()]

    names = sorted(path.name for path in (folder / "gts").glob("*.txt"))
    truth = [inclusive_boxes(rows(folder / "gts" / name)).tolist() for name in names]
    dataset = make_dataset(truth, [[0] * len(boxes) for boxes in truth])
    found = [rows(folder / "dets" / name) for name in names]
    return dataset, collect(*((inclusive_boxes([r[1:] for r in f]), [r[0] for r in f], [0] * len(f)) for f in found))


@pytest.mark.parametrize("iou", ["0.5", "0.75"])
def test_the_sample_to_nine_digits(sample, make_dataset, iou):
    scores = voc_scores(*load_sample(sample, make_dataset), iou=float(iou))
    expected = json.loads((sample / "expected.json").read_text())
    assert scores.ap07[0] == pytest.approx(expected["AP_11_point"][iou], abs=1e-9)
    assert scores.ap12[0] == pytest.approx(expected["AP_all_point"][iou], abs=1e-9)


def test_the_sample_at_iou_030_with_ties_in_the_order_of_files(sample, make_dataset):
    scores = voc_scores(*load_sample(sample, make_dataset), iou=0.3)
    assert scores.ap12[0] == pytest.approx(0.2456866804, abs=1e-9)
    assert scores.ap07[0] == pytest.approx(0.2683982683, abs=1e-9)


def plus_one(boxes):
    """chainercv's boxes y1 x1 y2 x2 with the last pixel included, as xyxy on half-open edges."""
    boxes = np.array(boxes, float).reshape(-1, 4)[:, [1, 0, 3, 2]]
    return np.add(boxes, [0, 0, 1, 1])


@pytest.mark.parametrize(("iou", "right"), [(0.5, [True, False, False]), (0.97, [False] * 3)])
@pytest.mark.parametrize("difficult", [False, True])
def test_one_box_of_chainercv(make_dataset, iou, right, difficult):
    """IoUs 0.95, 0.42 and 0.38 with the object; a difficult one beside it overlaps too little to excuse any."""
    truth = plus_one([[0, 0, 1, 0.9], [1, 1, 2, 2]])[: 1 + difficult].tolist()
    dataset = make_dataset([truth], [[0] * len(truth)], difficult=[False, True][: len(truth)])
    results = collect((plus_one([[0, 0, 1, 1], [0, 0, 2, 2], [0.3, 0.3, 0.5, 0.5]]), [0.8, 0.9, 1.0], [0, 0, 0]))
    assert match_by_voc(dataset, results, iou=iou)[0].tolist() == right


def test_several_boxes_of_chainercv(make_dataset):
    """AP 0.25 and 0.5 of all points, 3/11 and 0.5 * 11/11 of eleven."""
    truth = [plus_one([[0, 0, 1, 1], [1, 0, 4, 4]]).tolist(), plus_one([[2, 2, 3, 3]]).tolist()]
    dataset = make_dataset(truth, [[0, 0], [1]], names=("a", "b"))
    results = collect(
        (plus_one([[0, 4, 1, 5], [0, 0, 1, 1]]), [1.0, 0.9], [0, 0]),
        (plus_one([[0, 0, 2, 2], [2, 2, 3, 3], [5, 5, 7, 7]]), [0.7, 0.6, 0.8], [0, 1, 1]),
    )
    scores = voc_scores(dataset, results, iou=0.4)
    np.testing.assert_allclose(scores.ap12, [0.25, 0.5])
    np.testing.assert_allclose(scores.ap07, [0.5 / 11 * 6, 0.5])
    assert scores.summary() == pytest.approx({"voc07": (3 / 11 + 0.5) / 2, "voc12": 0.375})


def test_an_overlap_of_exactly_the_threshold_is_right(make_dataset):
    """The devkit asks for at least 0.5; pixels 1 to 10 in a row against 1 to 20."""
    dataset = make_dataset([[[0, 0, 20, 1]]], [[0]])
    assert voc_scores(dataset, collect(([[0, 0, 10, 1]], [0.9], [0]))).ap12[0] == 1


def test_a_second_detection_of_an_object_is_wrong(make_dataset):
    dataset = make_dataset([[[0, 0, 20, 20], [50, 50, 70, 70]]], [[0, 0]])
    results = collect(([[0, 0, 20, 20], [0, 0, 20, 19], [50, 50, 70, 70]], [0.7, 0.9, 0.8], [0, 0, 0]))
    right, counted = match_by_voc(dataset, results, iou=0.5)
    assert right.tolist() == [False, True, True]
    assert counted.all()


def test_a_detection_belongs_to_the_object_it_overlaps_most_even_when_taken(make_dataset):
    """Unlike COCO, where the second would fall back on the other object."""
    dataset = make_dataset([[[0, 0, 20, 20], [0, 0, 20, 14]]], [[0, 0]])
    results = collect(([[0, 0, 20, 20], [0, 0, 20, 19]], [0.9, 0.8], [0, 0]))
    assert match_by_voc(dataset, results, iou=0.5)[0].tolist() == [True, False]


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_difficult_objects_and_crowds_count_neither_way(make_dataset, kind):
    boxes = [[0, 0, 20, 20], [50, 50, 70, 70]]
    dataset = make_dataset([boxes], [[0, 0]], **{kind: [False, True]})
    results = collect(([[50, 50, 70, 70], [50, 50, 70, 71], [0, 0, 20, 20]], [0.9, 0.8, 0.7], [0, 0, 0]))
    assert voc_scores(dataset, results).summary() == {"voc07": 1.0, "voc12": 1.0}


def test_undefined_is_minus_one_and_no_detection_is_zero(make_dataset):
    dataset = make_dataset(
        [[[0, 0, 20, 20]], [[5, 5, 9, 9]]], [[0], [2]], names=("a", "b", "c"), difficult=[False, True]
    )
    scores = voc_scores(dataset, collect())
    assert scores.ap07.tolist() == scores.ap12.tolist() == [0, -1, -1]
    assert scores.summary(1) == {"voc07": -1, "voc12": -1}
    assert scores.summary() == {"voc07": 0, "voc12": 0}


def test_masks_are_scored_by_mask_iou(make_dataset):
    from pycocotools import mask as tools

    def rle(rows):
        plane = np.zeros((400, 400), np.uint8, order="F")
        plane[:rows, :20] = 1
        return tools.encode(plane)

    dataset = make_dataset([[[0, 0, 20, 20]]], [[0]], masks=[rle(20)])
    found = collect(([[0, 0, 20, 20]], [0.9], [0]))
    for rows, expected in ((11, 1.0), (9, 0.0)):
        results = Results(found.images, found.boxes, found.scores, found.class_ids, [rle(rows)])
        assert voc_scores(dataset, results, masks=True).ap12[0] == expected
        assert voc_scores(dataset, results).ap12[0] == 1


def test_masks_that_fill_boxes_of_whole_pixels_score_as_these_boxes(make_dataset):
    from pycocotools import mask as tools

    rng = np.random.default_rng(0)

    def drawn(count):
        low = rng.integers(0, 30, (count, 2))
        return np.concatenate([low, low + rng.integers(4, 10, (count, 2))], axis=1)

    def rle(box):
        plane = np.zeros((40, 40), np.uint8, order="F")
        plane[box[1] : box[3], box[0] : box[2]] = 1
        return tools.encode(plane)

    truth = [drawn(9) for _ in range(3)]
    labels = [rng.integers(0, 2, 9).tolist() for _ in truth]
    dataset = make_dataset(
        [boxes.tolist() for boxes in truth],
        labels,
        names=("a", "b"),
        size=(40, 40),
        masks=[rle(box) for boxes in truth for box in boxes],
    )
    near = [(boxes + rng.integers(0, 4, (len(boxes), 1))).clip(max=40) for boxes in truth]
    found = collect(*((boxes.tolist(), rng.random(9).tolist(), own) for boxes, own in zip(near, labels, strict=True)))
    results = replace(found, masks=[rle(box) for boxes in near for box in boxes])
    masks, boxes = voc_scores(dataset, results, masks=True), voc_scores(dataset, results)
    assert masks.ap12 == pytest.approx(boxes.ap12)
    assert 0 < boxes.ap12[0] < 1


def voc_loop(dataset, results, iou):
    """The devkit's rule, one detection after the other (VOCevaldet.m in words)."""
    taken, right, counted = set(), [False] * len(results), [True] * len(results)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    for d in np.argsort(-results.scores, kind="stable"):
        best, most = -1, -np.inf
        for t in range(len(owner)):
            if owner[t] != results.images[d] or dataset.labels[t] != results.class_ids[d]:
                continue
            a, b = results.boxes[d], dataset.boxes[t].astype(float)
            sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            if (sides > 0).all():
                common = sides.prod()
                overlap = common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)
                if overlap > most:
                    best, most = t, overlap
        if most >= iou:
            if dataset.difficult[best]:
                counted[d] = False
            elif best not in taken:
                right[d] = True
                taken.add(best)
    return right, counted


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_matching_equals_the_loop(make_dataset, seed):
    rng = np.random.default_rng(seed)

    def boxes(n):
        low = rng.integers(0, 20, (n, 2))
        return np.concatenate([low, low + rng.integers(1, 15, (n, 2))], axis=1)

    truth = [boxes(rng.integers(0, 6)) for _ in range(3)]
    labels = [rng.integers(0, 2, len(b)).tolist() for b in truth]
    dataset = make_dataset(
        [b.tolist() for b in truth],
        labels,
        names=("a", "b"),
        difficult=(rng.random(sum(map(len, truth))) < 0.3).tolist(),
    )
    counts = rng.integers(0, 12, 3)
    results = collect(*((boxes(n), rng.integers(1, 5, n), rng.integers(0, 2, n)) for n in counts))
    right, counted = match_by_voc(dataset, results, iou=0.5)
    assert (right.tolist(), counted.tolist()) == voc_loop(dataset, results, 0.5)


def test_ap_of_known_curves():
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    assert all_point_ap(recall, precision) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert eleven_point_ap(recall, precision) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert all_point_ap(np.zeros(0), np.zeros(0)) == eleven_point_ap(np.zeros(0), np.zeros(0)) == 0
