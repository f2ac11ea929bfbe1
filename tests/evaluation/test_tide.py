"""TIDE's types and dAP: by hand, by fixing the files themselves and scoring them again, and against tidecv."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from twostage.data.dataset import Dataset
from twostage.data.flat import RLE, FlatMasks, Mask
from twostage.data.recognise import open_dataset
from twostage.errors import DataError
from twostage.evaluation.coco import coco_scores
from twostage.evaluation.results import Accumulator, Results
from twostage.evaluation.tide import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    LOCALISATION,
    MISSED,
    NOT_COUNTED,
    TRUE_POSITIVE,
    TYPES,
    tide,
)

NAMES = ("cat", "dog")
A, B, C = [0, 0, 100, 100], [200, 0, 300, 100], [0, 200, 100, 300]
# IoU 0.4 with B, and an empty part of the image.
PART_OF_B, EMPTY = [200, 0, 300, 40], [300, 300, 350, 350]
SPECIAL = ("false_positives", "false_negatives")


def results_of(rows):
    """Rows of box, score, class id on image 0."""
    return Results(
        np.zeros(len(rows), np.int64),
        np.array([r[0] for r in rows], float).reshape(-1, 4),
        np.array([r[1] for r in rows], float),
        np.array([r[2] for r in rows], np.int64),
    )


@pytest.mark.parametrize(
    ("kind", "labels", "rows", "before", "costs"),
    [
        # Class 0: right, wrong; class 1: nothing, then the wrong one.
        ("classification", [0, 1], [(A, 0.9, 0), (B, 0.8, 0)], 1 / 2, 1 / 2),
        # Half of the recall at precision 1: 51 of 101 levels.
        ("localisation", [0, 0], [(A, 0.9, 0), (PART_OF_B, 0.8, 0)], 51 / 101, 50 / 101),
        # Class 0: wrong, right; class 1: right.
        ("both", [0, 1], [(PART_OF_B, 0.95, 0), (A, 0.9, 0), (B, 0.8, 1)], 3 / 4, 1 / 4),
        # Precision 1 up to recall 1/2, then 2/3.
        ("duplicate", [0, 0], [(A, 0.9, 0), ([0, 0, 100, 90], 0.8, 0), (B, 0.7, 0)], (51 + 100 / 3) / 101, 50 / 303),
        ("background", [0, 0], [(EMPTY, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0)], 2 / 3, 1 / 3),
        ("missed", [0, 0], [(A, 0.9, 0)], 51 / 101, 50 / 101),
    ],
)
def test_each_type_alone_costs_all_that_lacks(make_dataset, kind, labels, rows, before, costs):
    out = tide(make_dataset([[A, B]], [labels], names=NAMES), results_of(rows))
    assert out.ap50 == pytest.approx(before)
    assert {name: out.counts[name] for name in TYPES} == {name: int(name == kind) for name in TYPES}
    assert {name: out.dap[name] for name in TYPES} == pytest.approx({n: costs * (n == kind) for n in TYPES})
    assert out.ap50 + out.dap[kind] == pytest.approx(1)


def test_all_types_on_one_image_by_hand(make_dataset):
    """Cats: A, B, C, of which A is found and C missed; dogs: E, F, of which F is found."""
    e, f = [200, 200, 300, 300], [0, 320, 100, 400]
    dataset = make_dataset([[A, B, C, e, f]], [[0, 0, 0, 1, 1]], names=NAMES)
    rows = [
        (EMPTY, 0.95, 0),
        (A, 0.9, 0),
        ([0, 0, 100, 90], 0.85, 0),
        (PART_OF_B, 0.8, 0),
        (e, 0.75, 0),
        ([0, 320, 100, 350], 0.7, 0),
        (f, 0.6, 1),
    ]
    out = tide(dataset, results_of(rows))
    assert out.types.tolist() == [BACKGROUND, TRUE_POSITIVE, DUPLICATE, LOCALISATION, CLASSIFICATION, BOTH, -1]
    assert out.objects.tolist() == [-1, 0, 0, 1, 3, 4, 4]
    assert out.missed.tolist() == [2]
    assert out.counts == dict.fromkeys(TYPES, 1) | {"false_positives": 5, "false_negatives": 3}
    # Cats are wrong, right, then wrong: precision 1/2 at 34 of 101 levels, up to recall 1/3. Dogs: 1 at 51 levels.
    cats, dogs = 34 / 2, 51
    assert out.ap50 == pytest.approx((cats + dogs) / 202)
    after = {
        "classification": (cats, 101),
        "localisation": (67 / 2, dogs),  # right at places 2 and 4: precision 1/2 up to recall 2/3
        "both": (cats, dogs),  # it comes after the last right one
        "duplicate": (cats, dogs),
        "background": (34, dogs),
        "missed": (51 / 2, dogs),  # recall 1/2
        "false_positives": (34, dogs),
        "false_negatives": (101 / 2, 101),
    }
    assert out.dap == pytest.approx({name: (sum(levels) - cats - dogs) / 202 for name, levels in after.items()})
    document = out.to_dict()
    assert set(document) == {"AP50", "dAP", "counts"}
    assert set(document["dAP"]) == set(document["counts"]) == {*TYPES, *SPECIAL}
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        ([0, 0, 50, 100], 0, TRUE_POSITIVE),  # IoU 0.5
        ([0, 0, 49, 100], 0, LOCALISATION),
        ([0, 0, 10, 100], 0, LOCALISATION),  # IoU 0.1
        ([0, 0, 9, 100], 0, BACKGROUND),
        ([0, 0, 50, 100], 1, CLASSIFICATION),
        ([0, 0, 49, 100], 1, BOTH),
        ([0, 0, 11, 100], 1, BOTH),
        ([0, 0, 10, 100], 1, BACKGROUND),
    ],
)
def test_the_thresholds_are_part_of_the_types_as_published(make_dataset, box, label, kind):
    out = tide(make_dataset([[A]], [[0]], names=NAMES), results_of([(box, 0.9, label)]))
    assert out.types.tolist() == [kind]
    covers = kind in (TRUE_POSITIVE, LOCALISATION, CLASSIFICATION)
    assert out.missed.tolist() == ([] if covers else [0])


def test_an_iou_of_a_half_with_a_matched_object_is_localisation(make_dataset):
    """The published ranges of localisation and duplicate both include 0.5."""
    rows = [(A, 0.9, 0), ([0, 0, 50, 100], 0.8, 0), ([0, 0, 51, 100], 0.7, 0)]
    out = tide(make_dataset([[A]], [[0]], names=NAMES), results_of(rows))
    assert out.types.tolist() == [TRUE_POSITIVE, LOCALISATION, DUPLICATE]


def test_among_equal_overlaps_the_last_object_is_matched_as_by_pycocotools(make_dataset):
    """The first detection has IoU 90/110 with both objects; the second reaches 0.5 with the first object alone."""
    dataset = make_dataset([[[100, 0, 200, 100], [120, 0, 220, 100]]], [[0, 0]])
    results = results_of([([110, 0, 210, 100], 0.9, 0), ([70, 0, 170, 100], 0.8, 0)])
    out = tide(dataset, results)
    assert out.objects.tolist() == [1, 0]
    assert out.ap50 == coco_scores(dataset, results).average_precision(iou=0.5) == 1


def test_where_two_definitions_hold_the_own_class_goes_first_and_duplicates_last(make_dataset):
    dataset = make_dataset([[A, A, B, [200, 0, 300, 40]]], [[0, 1, 0, 1]], names=NAMES)
    rows = [(A, 0.9, 0), (A, 0.8, 1), (A, 0.7, 0), (PART_OF_B, 0.6, 0)]
    out = tide(dataset, results_of(rows))
    # The third is on a matched cat and on a dog; the fourth has IoU 0.4 with a cat and 1 with a dog.
    assert out.types.tolist() == [TRUE_POSITIVE, TRUE_POSITIVE, CLASSIFICATION, LOCALISATION]
    assert out.objects.tolist() == [0, 1, 1, 2]
    assert out.missed.tolist() == [3]


def test_a_fix_that_would_make_a_duplicate_removes_the_detection(make_dataset):
    """A is matched, whatever the scores; of several on B the best is fixed, and of two types together only one."""
    part_of_a = [0, 0, 100, 40]
    dataset = make_dataset([[A, B]], [[0, 0]], names=NAMES)
    out = tide(dataset, results_of([(part_of_a, 0.9, 0), (A, 0.8, 0)]))
    assert out.ap50 == pytest.approx(51 / 202)
    assert out.dap["localisation"] == pytest.approx(51 / 202)

    out = tide(dataset, results_of([(A, 0.9, 0), (PART_OF_B, 0.8, 0), ([200, 0, 300, 45], 0.7, 0)]))
    assert out.counts["localisation"] == 2
    assert out.ap50 + out.dap["localisation"] == pytest.approx(1)

    # The dog on B has the highest score: the classification fix makes it right, that of localisation removes the cat.
    out = tide(dataset, results_of([(A, 0.9, 0), (B, 0.8, 1), (PART_OF_B, 0.7, 0)]))
    assert out.types.tolist() == [TRUE_POSITIVE, CLASSIFICATION, LOCALISATION]
    assert out.dap["classification"] == pytest.approx(50 / 101)
    assert out.dap["localisation"] == 0


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_crowds_and_difficult_objects_count_nowhere(make_dataset, kind):
    dataset = make_dataset([[A, B]], [[0, 1]], names=NAMES, **{kind: [True, False]})
    rows = [(A, 0.9, 0), ([0, 0, 100, 90], 0.8, 0), (A, 0.7, 1), (B, 0.6, 1)]
    out = tide(dataset, results_of(rows))
    # For the class of B what lies on A is background.
    assert out.types.tolist() == [NOT_COUNTED, NOT_COUNTED, BACKGROUND, TRUE_POSITIVE]
    assert out.missed.tolist() == []
    assert out.ap50 == pytest.approx(1 / 2)
    assert out.dap["background"] == pytest.approx(1 / 2)
    inside = tide(dataset, results_of([([10, 10, 20, 20], 0.9, 0)]))
    assert inside.types.tolist() == [NOT_COUNTED if kind == "crowd" else BACKGROUND]


def test_only_the_best_of_each_image_and_class_count(make_dataset):
    dataset = make_dataset([[A, B]], [[0, 1]], names=NAMES)
    rows = [(EMPTY, 0.1, 0), (A, 0.9, 0), (B, 0.5, 1), (EMPTY, 0.6, 1)]
    assert tide(dataset, results_of(rows), max_detections=1).types.tolist() == [-2, -1, -2, BACKGROUND]
    assert tide(dataset, results_of(rows)).types.tolist() == [BACKGROUND, -1, -1, BACKGROUND]


def test_classes_without_objects(make_dataset):
    """Dogs have no objects at first. Cats have none after the missed is not counted."""
    dataset = make_dataset([[A]], [[0]], names=NAMES)
    out = tide(dataset, results_of([(EMPTY, 0.9, 0), (EMPTY, 0.8, 1)]))
    assert out.ap50 == out.dap["missed"] == out.dap["false_negatives"] == 0
    assert out.types.tolist() == [BACKGROUND, BACKGROUND]
    out = tide(dataset, results_of([]))
    assert (out.ap50, out.dap["missed"], out.dap["false_negatives"], out.dap["background"]) == (0, -1, -1, 0)
    assert out.counts["missed"] == 1
    two = make_dataset([[A, B]], [[0, 1]], names=NAMES)
    assert tide(two, results_of([(B, 0.9, 1)])).dap["missed"] == pytest.approx(1 / 2)


def test_nothing_to_find_is_undefined(make_dataset):
    for images in ([], [[]]):
        out = tide(make_dataset(images, images, names=NAMES), results_of([]))
        assert {out.ap50, *out.dap.values()} == {-1.0}
        assert set(out.counts.values()) == {0}
    out = tide(make_dataset([[]], [[]], names=NAMES), results_of([(A, 0.9, 0)]))
    assert out.types.tolist() == [BACKGROUND]
    assert {out.ap50, *out.dap.values()} == {-1.0}


def random_case(make_dataset, seed):
    """Four images with crowds, difficult objects, equal scores, unsorted ids and every type of error."""
    rng = np.random.default_rng(seed)
    truths = [random_boxes(rng, int(rng.integers(0, 8))) for _ in range(4)]
    labels = [rng.integers(0, 3, len(boxes)) for boxes in truths]
    total = sum(map(len, truths))
    dataset = make_dataset(
        [boxes.tolist() for boxes in truths],
        [ids.tolist() for ids in labels],
        names=("ant", "bee", "cat"),
        crowd=(rng.random(total) < 0.1).tolist(),
        difficult=(rng.random(total) < 0.1).tolist(),
        image_ids=rng.permutation(100)[:4].tolist(),
        category_ids=rng.permutation(90)[:3].tolist(),
    )
    gathered = Accumulator()
    for i in rng.permutation(4).tolist():
        n = int(rng.integers(0, 20))
        boxes, classes = random_boxes(rng, n), rng.integers(0, 3, n)
        if len(truths[i]):
            source, near = rng.integers(0, len(truths[i]), n), rng.random(n) < 0.8
            boxes[near] = (truths[i][source] + rng.integers(-9, 10, (n, 1)) * [1, 0, 1, 0])[near]
            classes = np.where(near & (rng.random(n) < 0.8), labels[i][source], classes)
        gathered.add(i, boxes, rng.integers(1, 9, n) / 8, classes)
    return dataset, gathered.results()


def random_boxes(rng, n):
    low = rng.integers(0, 60, (n, 2))
    return np.concatenate([low, low + rng.choice([8, 16, 24, 40], (n, 2))], axis=1).astype(float)


def fixed(dataset, results, out, kinds):
    """The data set and the results in which the errors of these types are mended."""
    wrong = np.flatnonzero(np.isin(out.types, (CLASSIFICATION, LOCALISATION)))
    free = np.setdiff1d(np.arange(len(dataset.labels)), out.objects[out.types == TRUE_POSITIVE])
    best = {}
    for row in sorted(wrong.tolist(), key=lambda row: -results.scores[row]):
        if out.objects[row] in free:
            best.setdefault(out.objects[row], row)
    mended = np.isin(out.types, list(kinds))
    right = mended & np.isin(np.arange(len(results)), list(best.values()))
    target = out.objects[right]
    boxes, class_ids = results.boxes.copy(), results.class_ids.copy()
    boxes[right], class_ids[right] = dataset.boxes[target], dataset.labels[target]
    keep = ~mended | right
    mended_results = Results(results.images[keep], boxes[keep], results.scores[keep], class_ids[keep])
    return without(dataset, out.missed) if MISSED in kinds else dataset, mended_results


def without(dataset: Dataset, rows) -> Dataset:
    keep = np.ones(len(dataset.labels), dtype=bool)
    keep[rows] = False
    names = ("boxes", "labels", "crowd", "difficult", "areas", "annotation_ids")
    offsets = np.concatenate([[0], np.cumsum(keep)])[dataset.offsets]
    return replace(dataset, offsets=offsets, **{name: getattr(dataset, name)[keep] for name in names})


def ap50_of(dataset, results, defined):
    """COCO's AP50, with 0 for `defined` classes of which only counted detections are left."""
    scores = coco_scores(dataset, results, ious=(0.5,), max_detections=(100,))
    types = tide(dataset, results).types
    values = []
    for k in np.flatnonzero(defined):
        ap = scores.average_precision(class_id=int(k))
        emptied = ap < 0 and np.any((types != NOT_COUNTED) & (results.class_ids == k))
        values += [0.0] if emptied else [ap] if ap >= 0 else []
    return np.mean(values) if values else -1.0


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_ap50_and_each_dap_equal_coco_of_mended_files(make_dataset, seed):
    dataset, results = random_case(make_dataset, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twostage.evaluation.tide._RECALLS", np.linspace(0, 1, 101))
        out = tide(dataset, results)
    assert out.ap50 == pytest.approx(coco_scores(dataset, results).average_precision(iou=0.5), abs=1e-12)
    counted = ~(dataset.crowd | dataset.difficult)
    defined = np.bincount(dataset.labels[counted], minlength=3) > 0
    for kind, name in enumerate(TYPES):
        # A fixed detection matches its own object, and no other detection's match depends on it.
        ap = ap50_of(*fixed(dataset, results, out, {kind}), defined)
        expected = -1 if min(ap, out.ap50) < 0 else ap - out.ap50
        assert out.dap[name] == pytest.approx(expected, abs=1e-9), name
    everything = coco_scores(*fixed(dataset, results, out, range(6))).average_precision(iou=0.5)
    assert everything in (1, -1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_false_positive_has_one_type_and_every_object_one_fate(make_dataset, seed):
    dataset, results = random_case(make_dataset, seed)
    out = tide(dataset, results)
    wrong, right = out.types >= 0, out.types == TRUE_POSITIVE
    assert set(out.types.tolist()) <= {NOT_COUNTED, TRUE_POSITIVE, *range(MISSED)}
    assert out.counts["false_positives"] == wrong.sum() == sum(out.counts[name] for name in TYPES[:MISSED])
    assert [out.counts[name] for name in TYPES[:MISSED]] == np.bincount(out.types[wrong], minlength=MISSED).tolist()
    counted = np.flatnonzero(~(dataset.crowd | dataset.difficult))
    assert out.counts["false_negatives"] == len(counted) - right.sum()
    assert len(set(out.objects[right])) == right.sum()
    covering = out.objects[np.isin(out.types, (CLASSIFICATION, LOCALISATION))]
    assert sorted({*out.objects[right], *covering, *out.missed}) == counted.tolist()
    assert not {*out.missed} & {*out.objects[right], *covering}
    assert ((out.objects < 0) == np.isin(out.types, (BACKGROUND, NOT_COUNTED))).all()
    if out.ap50 >= 0:
        assert all(value >= 0 or value == -1 for value in out.dap.values())


def test_the_order_of_the_rows_of_a_file_changes_nothing(make_dataset):
    dataset, results = random_case(make_dataset, 5)
    results = replace(results, scores=np.random.default_rng(0).permutation(len(results)) / len(results))
    order = np.random.default_rng(1).permutation(len(results))
    out = tide(dataset, results)
    shuffled = tide(dataset, Results(*(getattr(results, c)[order] for c in ("images", "boxes", "scores", "class_ids"))))
    assert shuffled.to_dict() == out.to_dict()
    assert shuffled.types.tolist() == out.types[order].tolist()


def rectangle(box):
    mask = np.zeros((400, 400), dtype=np.uint8, order="F")
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return coco_mask.encode(mask[:, :, None])[0]


def test_masks_of_rectangles_equal_boxes(make_dataset):
    boxes, found = [A, B, C], [A, PART_OF_B, EMPTY]
    dataset = make_dataset([boxes], [[0, 0, 1]], names=NAMES, masks=[rectangle(box) for box in boxes])
    results = results_of([(box, 0.9 - 0.1 * k, 0) for k, box in enumerate(found)])
    by_box = tide(dataset, results)
    whole = replace(results, boxes=results.boxes * 0, masks=[rectangle(box) for box in found])
    by_mask = tide(dataset, whole, masks=True)
    assert by_mask.types.tolist() == by_box.types.tolist() == [TRUE_POSITIVE, LOCALISATION, BACKGROUND]
    assert by_mask.to_dict() == by_box.to_dict()
    with pytest.raises(DataError, match="results"):
        tide(dataset, results, masks=True)
    with pytest.raises(DataError, match="masks=False"):
        tide(replace(dataset, masks=None), whole, masks=True)


def perturbed(dataset, seed):
    """Detections near the objects, of wrong classes, twice and nowhere; the draws are the same in every Python."""
    draw = Random(seed).random
    gathered = Accumulator()
    for i in range(len(dataset)):
        rows = []
        objects = dataset.objects(i)
        for (x1, y1, x2, y2), label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True):
            for _ in range((0, 1, 1, 1, 2)[int(draw() * 5)]):
                w, h, far = x2 - x1, y2 - y1, 0.1 + 0.6 * draw()
                x, y = x1 + w * far * (draw() - 0.5), y1 + h * far * (draw() - 0.5)
                box = [x, y, x + w * (1 + far * (draw() - 0.5)), y + h * (1 + far * (draw() - 0.5))]
                rows.append((box, draw(), label if draw() < 0.85 else int(draw() * len(dataset.names))))
            if draw() < 0.15:
                x, y = 300 * draw(), 200 * draw()
                rows.append(([x, y, x + 60, y + 60], draw(), int(draw() * len(dataset.names))))
        boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
        gathered.add(i, np.array(boxes).reshape(-1, 4), np.array(scores, float), np.array(labels, np.int64))
    return gathered.results()


def drawn_dataset(make_dataset, seed):
    """40 images of 400 x 400 with up to 9 objects of 4 classes."""
    draw = Random(seed).random
    boxes, labels = [], []
    for _ in range(40):
        corners = [(300 * draw(), 300 * draw(), 20 + 80 * draw(), 20 + 80 * draw()) for _ in range(int(draw() * 10))]
        boxes.append([[x, y, x + w, y + h] for x, y, w, h in corners])
        labels.append([int(4 * draw() ** 2) for _ in corners])
    return make_dataset(boxes, labels, names=("a", "b", "c", "d"))


def ellipses(boxes, sizes):
    """The mask of the ellipse inside each box, of an image of that height and width each."""
    masks = []
    for (x1, y1, x2, y2), (height, width) in zip(boxes, sizes, strict=True):
        y, x = np.mgrid[:height, :width] + 0.5
        mask = ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2 <= 0.25
        masks.append(coco_mask.encode(np.asfortranarray(mask[:, :, None], dtype=np.uint8))[0])
    return masks


def with_ellipses(dataset, results):
    """Every object and detection as an ellipse."""
    truth = ellipses(dataset.boxes.astype(float), dataset.sizes[dataset.image_indices])
    found = ellipses(results.boxes, dataset.sizes[results.images])
    flat = FlatMasks.of([Mask(RLE, rle["counts"]) for rle in truth])
    return replace(dataset, masks=flat), replace(results, masks=found)


def shifted(dataset, seed):
    """The masks of the objects, moved by some pixels, some twice, some not at all, some where nothing is."""
    draw = Random(seed).random
    gathered = Accumulator()
    for i in range(len(dataset)):
        objects, masks = dataset.objects(i), []
        for (x1, y1, x2, y2), rle in zip(objects.boxes.tolist(), dataset.masks_of(i), strict=True):
            for _ in range((0, 1, 1, 1, 2)[int(draw() * 5)]):
                far = 0 if draw() < 0.5 else 0.8 if draw() < 0.9 else 5
                step = int((x2 - x1) * far * (draw() - 0.5)), int((y2 - y1) * far * (draw() - 0.5))
                moved = np.roll(coco_mask.decode(rle), step[::-1], axis=(0, 1))
                masks.append(coco_mask.encode(np.asfortranarray(moved[:, :, None]))[0])
        scores = np.array([draw() for _ in masks])
        boxes = coco_mask.toBbox(masks).reshape(-1, 4)
        gathered.add(i, boxes, scores, np.zeros(len(masks), np.int64), masks)
    return gathered.results()


# Computed by tidecv 1.0.1, in points of 100: AP50, dAP of TYPES, of false positives and false negatives; then counts.
TIDECV = {
    "drawn": (
        (36.5064, 6.5788, 12.5458, 2.0650, 1.1208, 4.8489, 14.8820, 19.1866, 28.9613),
        (11, 29, 6, 20, 20, 51),
    ),
    "val": (
        (29.6486, 9.0600, 15.4881, 2.0899, 1.2607, 2.5600, 7.6209, 29.7573, 18.8341),
        (103, 204, 52, 123, 87, 249),
    ),
    "test": (
        (28.3145, 8.4155, 11.8172, 2.0907, 1.3870, 2.5315, 9.2211, 29.7713, 19.3801),
        (87, 165, 55, 109, 68, 218),
    ),
    "drawn masks": (
        (35.6075, 7.0959, 12.9578, 0.6595, 1.0291, 6.2585, 14.1110, 18.6004, 29.9671),
        (12, 29, 4, 20, 23, 50),
    ),
    "nuclei's masks": (
        (43.7076, 0.0, 28.5863, 0.0, 2.2684, 1.4835, 10.9063, 19.6587, 25.1114),
        (0, 480, 0, 202, 60, 391),
    ),
}


def assert_equal_to_tidecv(out, name):
    values, counts = TIDECV[name]
    np.testing.assert_allclose([100 * v for v in (out.ap50, *out.dap.values())], values, rtol=0, atol=1e-4)
    assert list(out.dap) == [*TYPES, *SPECIAL]
    assert tuple(out.counts[name] for name in TYPES) == counts


def test_random_boxes_equal_tidecv(make_dataset):
    dataset = drawn_dataset(make_dataset, 7)
    assert_equal_to_tidecv(tide(dataset, perturbed(dataset, 7)), "drawn")


def test_random_masks_equal_tidecv(make_dataset):
    dataset = drawn_dataset(make_dataset, 7)
    dataset, results = with_ellipses(dataset, perturbed(dataset, 7))
    assert_equal_to_tidecv(tide(dataset, results, masks=True), "drawn masks")


def test_real_masks_equal_tidecv(real_data):
    dataset = open_dataset(real_data / "nuclei", split="val")
    assert_equal_to_tidecv(tide(dataset, shifted(dataset, 7), masks=True), "nuclei's masks")


@pytest.mark.parametrize("split", ["val", "test"])
def test_real_boxes_equal_tidecv(real_data, split):
    dataset = open_dataset(real_data / "blood-cells", split=split)
    assert_equal_to_tidecv(tide(dataset, perturbed(dataset, 7)), split)
