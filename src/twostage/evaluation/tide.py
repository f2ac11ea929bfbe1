"""TIDE: the type of each error of a detector, and the AP50 that each type costs (Bolya et al., ECCV 2020, section 2).

A false positive has one of five types, by its highest IoU with objects of its own class and with those of other classes
on its image. The definitions overlap; as in the authors' tool tidecv, the first of this order that holds is taken:

    localisation    0.1 <= IoU <= 0.5 with its own class
    classification  IoU >= 0.5 with another class
    duplicate       IoU >= 0.5 with its own class; the object is matched by another detection
    background      IoU <= 0.1 with every object
    both            the others: 0.1 < IoU < 0.5 with another class

A missed object is unmatched, and no localisation or classification error has its highest IoU with it.

The dAP of a type is AP50 with all errors of this type fixed and no other, minus AP50:

    localisation, classification  the detection gets the object's box or class and is a true positive; it is removed if
                                  that makes a duplicate: the object is matched, or a localisation or classification
                                  error of a higher score is on it
    both, duplicate, background   the detection is removed
    missed                        the object is not counted
    false_positives               all false positives are removed
    false_negatives               no unmatched object is counted

A class of which no object is left has AP 0 if it has detections left, else it is left out of the mean.

The paper says to suppress the lower-scoring of two duplicates. By its words a fixed detection could also replace a true
positive of a lower score. The rules above are those of tidecv, so that the numbers are comparable with published ones.

Matching, ties and AP50 are COCO's (`evaluation.coco`). Four differences from tidecv 1.0.1 follow from that:
- the limit of detections is per image and class; tidecv's is 100 per image;
- a class without objects is left out of the mean; in tidecv it has AP 0 if it has detections;
- detections on crowds and on difficult objects are no errors; tidecv gives them a type and may fix them;
- detections of equal score keep their order; tidecv puts the false positives first when it fixes a type.

Letters: n detections, b objects, m missed objects, p pairs of a detection and an object, K classes.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Bool, Float64, Int64

from twostage.data.dataset import Dataset
from twostage.errors import DataError
from twostage.evaluation.coco import Shapes, detected_shapes, plain_shapes, truth_shapes
from twostage.evaluation.groups import mean_of_defined
from twostage.evaluation.results import Results

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(TYPES))
TRUE_POSITIVE, NOT_COUNTED = -1, -2
# COCO's levels differ from i / 100 by rounding, which changes AP if a recall is exactly a level, as with 50 or 100
# objects. AP50 is computed at COCO's levels, to be equal to `coco_scores`; dAP at i / 100, to be equal to tidecv's.
_COCO_RECALLS, _RECALLS = np.linspace(0.0, 1.0, 101), np.arange(101) / 100
_REMOVED = 0  # the class of a detection that a fix removes; `Shapes` counts classes from 1


@dataclass(frozen=True, eq=False)
class Tide:
    """AP50, and dAP and count of each of TYPES, "false_positives" and "false_negatives".

    AP50 and dAP are in 0..1. AP50 is -1 if undefined, dAP is -1 if AP50 is undefined before or after the fix.
    `types` has the index in TYPES of the error of each detection, TRUE_POSITIVE, or NOT_COUNTED: on a crowd or a
    difficult object, or beyond the limit of detections. `objects` has the row in the data set of the object that a
    detection matches, duplicates, or has the wrong class or box of; -1 for background and not counted. `missed` are the
    rows in the data set of the missed objects.
    """

    ap50: float
    dap: dict[str, float]
    counts: dict[str, int]
    types: Int64[np.ndarray, " n"]
    objects: Int64[np.ndarray, " n"]
    missed: Int64[np.ndarray, " m"]

    def to_dict(self) -> dict[str, Any]:
        """A dictionary {"AP50", "dAP", "counts"}."""
        return {"AP50": self.ap50, "dAP": self.dap, "counts": self.counts}


def tide(dataset: Dataset, results: Results, *, masks: bool = False, max_detections: int = 100) -> Tide:
    """The type of each error, and the dAP of each type, by the IoU of boxes, or of masks with `masks`.

    The `max_detections` best per image and class are counted. Raises DataError if masks are missing.
    """
    if masks and (dataset.masks is None or results.masks is None):
        raise DataError(f"No masks in {dataset.root if dataset.masks is None else 'the results'}: give masks=False.")
    truth, detected = truth_shapes(dataset, masks=masks), detected_shapes(dataset, results, masks=masks)
    rows = _ranked(detected, max_detections)
    detected = detected.take(rows)
    pairs = _pairs(truth, detected)
    match, ignored = _match(truth, len(rows), pairs)
    types, objects = _types(truth, pairs, match, ignored)
    unmatched = ~truth.ignored
    unmatched[match[match >= 0]] = False
    fixable, covered = _fixable(types, objects, unmatched)
    missed = np.setdiff1d(np.flatnonzero(unmatched), covered)

    fixed_classes = np.full(len(rows), _REMOVED, dtype=np.int64)
    fixed_classes[fixable] = truth.categories[covered]
    outcome = _Outcome(
        types=types,
        classes=detected.categories,
        fixed_classes=fixed_classes,
        objects=np.bincount(truth.categories[~truth.ignored], minlength=len(dataset.names) + 1),
        missed=np.bincount(truth.categories[missed], minlength=len(dataset.names) + 1),
    )
    counts = {name: int(np.count_nonzero(types == k)) for k, name in enumerate(TYPES[:MISSED])}
    counts |= {"missed": len(missed), "false_positives": sum(counts.values())}
    return Tide(
        ap50=_mean_ap(_fixed(outcome, ()), outcome.objects > 0, _COCO_RECALLS),
        dap=_dap(outcome),
        counts={**counts, "false_negatives": int(np.count_nonzero(unmatched))},
        types=_by_row(types, rows, len(results), NOT_COUNTED),
        objects=_by_row(objects, rows, len(results), -1),
        missed=missed,
    )


def _by_row(
    values: Int64[np.ndarray, " c"], rows: Int64[np.ndarray, " c"], count: int, default: int
) -> Int64[np.ndarray, " n"]:
    """The values of these of `count` rows, the default for the others."""
    column = np.full(count, default, dtype=np.int64)
    column[rows] = values
    return column


def _ranked(detected: Shapes, most: int) -> Int64[np.ndarray, " n"]:
    """The rows that count, in falling order of score; equal scores by image, then by row, as in COCO's tools."""
    rows = np.lexsort((-detected.scores, detected.categories, detected.images))
    images, categories = detected.images[rows], detected.categories[rows]
    new = (np.diff(images, prepend=-1) != 0) | (np.diff(categories, prepend=-1) != 0)
    start = np.flatnonzero(new)
    place = np.arange(len(rows)) - start[np.cumsum(new) - 1]
    rows = rows[place < most]
    return rows[np.lexsort((rows, detected.images[rows], -detected.scores[rows]))]


class _Pairs(NamedTuple):
    """Detections and objects on one image with an IoU of at least BACKGROUND_IOU; `same` where of the same class."""

    detections: Int64[np.ndarray, " p"]
    objects: Int64[np.ndarray, " p"]
    iou: Float64[np.ndarray, " p"]
    same: Bool[np.ndarray, " p"]

    def where(self, mask: Bool[np.ndarray, " p"]) -> "_Pairs":
        return _Pairs(*(column[mask] for column in self))

    def best(self, count: int) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """For each of `count` detections the object of the highest IoU (the first of equals), and the IoU; -1 and 0."""
        order = np.lexsort((self.objects, -self.iou, self.detections))
        detections, first = np.unique(self.detections[order], return_index=True)
        objects, iou = np.full(count, -1, dtype=np.int64), np.zeros(count)
        objects[detections], iou[detections] = self.objects[order[first]], self.iou[order[first]]
        return objects, iou


def _pairs(truth: Shapes, detected: Shapes) -> _Pairs:
    """All pairs, of boxes or of RLEs; the IoU with a crowd is the share of the detection inside it, as in COCO."""
    by_image = [np.argsort(shapes.images, kind="stable") for shapes in (detected, truth)]
    images = np.intersect1d(detected.images, truth.images)
    bounds = [
        np.searchsorted(shapes.images[rows], [images, images + 1]).T.tolist()
        for shapes, rows in zip((detected, truth), by_image, strict=True)
    ]
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for (a, b), (c, d) in zip(*bounds, strict=True):
        i, j = by_image[0][a:b], by_image[1][c:d]
        crowd = truth.crowd[j].astype(int).tolist()
        iou = np.asarray(coco_mask.iou(plain_shapes(detected.shapes[i]), plain_shapes(truth.shapes[j]), crowd))
        row, column = np.nonzero(iou >= BACKGROUND_IOU)
        parts.append((i[row], j[column], iou[row, column]))
    i, j, overlap = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return _Pairs(i, j, overlap, detected.categories[i] == truth.categories[j])


def _match(truth: Shapes, count: int, pairs: _Pairs) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """COCO's matching of `count` detections, the best first: the object of each or -1, and which are ignored."""
    near = pairs.where(pairs.same & (pairs.iou >= FOREGROUND_IOU))
    ignorable = truth.ignored[near.objects]
    ignored = np.zeros(count, dtype=bool)
    ignored[near.detections[ignorable]] = True
    near = near.where(~ignorable)
    # Among equal IoUs pycocotools takes the last object.
    order = np.lexsort((-near.objects, -near.iou, near.detections))
    match, free = np.full(count, -1, dtype=np.int64), np.ones(len(truth.images), dtype=bool)
    for detection, target in zip(near.detections[order].tolist(), near.objects[order].tolist(), strict=True):
        if match[detection] < 0 and free[target]:
            match[detection], free[target] = target, False
    return match, ignored & (match < 0)


def _types(
    truth: Shapes, pairs: _Pairs, match: Int64[np.ndarray, " n"], ignored: Bool[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The type of each detection, and the object that determines it or -1; the rules in order of precedence."""
    counted = ~truth.ignored[pairs.objects]
    own, own_iou = pairs.where(counted & pairs.same).best(len(match))
    other, other_iou = pairs.where(counted & ~pairs.same).best(len(match))
    none = np.full(len(match), -1, dtype=np.int64)
    rules = (
        (match >= 0, TRUE_POSITIVE, match),
        (ignored, NOT_COUNTED, none),
        ((own_iou >= BACKGROUND_IOU) & (own_iou <= FOREGROUND_IOU), LOCALISATION, own),
        (other_iou >= FOREGROUND_IOU, CLASSIFICATION, other),
        (own_iou >= FOREGROUND_IOU, DUPLICATE, own),
        (other_iou <= BACKGROUND_IOU, BACKGROUND, none),
    )
    conditions, types, objects = zip(*rules, strict=True)
    return np.select(conditions, types, default=BOTH), np.select(conditions, objects, default=other)


def _fixable(
    types: Int64[np.ndarray, " n"], objects: Int64[np.ndarray, " n"], unmatched: Bool[np.ndarray, " b"]
) -> tuple[Int64[np.ndarray, " f"], Int64[np.ndarray, " f"]]:
    """The detections that a fix makes true positives, at most one for each object, and their objects."""
    wrong = np.flatnonzero(np.isin(types, (CLASSIFICATION, LOCALISATION)))
    wrong = wrong[unmatched[objects[wrong]]]
    # Detections are in falling order of score, and unique returns the first of each object.
    covered, first = np.unique(objects[wrong], return_index=True)
    return wrong[first], covered


class _Outcome(NamedTuple):
    """The detections in falling order of score, and objects per class; classes count from 1 as in `Shapes`."""

    types: Int64[np.ndarray, " n"]
    classes: Int64[np.ndarray, " n"]
    fixed_classes: Int64[np.ndarray, " n"]  # of each detection after a fix of its error: the object's, or _REMOVED
    objects: Int64[np.ndarray, " k1"]
    missed: Int64[np.ndarray, " k1"]


class _Curve(NamedTuple):
    """What AP is computed from: detections in falling order of score, and the number of objects per class."""

    classes: Int64[np.ndarray, " c"]
    right: Bool[np.ndarray, " c"]
    objects: Int64[np.ndarray, " k1"]


def _fixed(outcome: _Outcome, fix: Collection[int]) -> _Curve:
    """The detections after all errors of these types are fixed."""
    fixed = np.isin(outcome.types, list(fix))
    classes = np.where(fixed, outcome.fixed_classes, outcome.classes)
    right = fixed | (outcome.types == TRUE_POSITIVE)
    kept = (classes != _REMOVED) & (outcome.types != NOT_COUNTED)
    objects = outcome.objects - outcome.missed if MISSED in fix else outcome.objects
    return _Curve(classes[kept], right[kept], objects)


def _dap(outcome: _Outcome) -> dict[str, float]:
    """AP50 after each fix alone minus AP50; -1 if one is undefined."""
    curve, defined = _fixed(outcome, ()), outcome.objects > 0
    classes, right, objects = curve
    matched = np.bincount(classes[right], minlength=len(objects))
    fixes = {name: _fixed(outcome, (k,)) for k, name in enumerate(TYPES)}
    fixes["false_positives"] = _Curve(classes[right], right[right], objects)
    fixes["false_negatives"] = _Curve(classes, right, matched)
    before = _mean_ap(curve, defined, _RECALLS)
    after = {name: _mean_ap(fixed, defined, _RECALLS) for name, fixed in fixes.items()}
    return {name: ap - before if min(ap, before) >= 0 else -1.0 for name, ap in after.items()}


def _mean_ap(curve: _Curve, defined: Bool[np.ndarray, " k1"], recalls: Float64[np.ndarray, " r"]) -> float:
    """COCO's AP at these recalls, the mean over the `defined` classes that have objects or detections; -1 without any.

    A class with detections and no object has AP 0.
    """
    order = np.argsort(curve.classes, kind="stable")
    edges = np.searchsorted(curve.classes[order], np.arange(len(defined) + 1))
    ap = np.full(len(defined), -1.0)
    for k in np.flatnonzero(defined & ((curve.objects > 0) | (np.diff(edges) > 0))):
        hits = np.cumsum(curve.right[order[edges[k] : edges[k + 1]]])
        precision = hits / np.arange(1, len(hits) + 1)
        best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        ap[k] = best[np.searchsorted(hits / max(curve.objects[k], 1), recalls, side="left")].mean()
    return mean_of_defined(ap)
