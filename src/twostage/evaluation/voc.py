"""Average precision by the rules of the PASCAL VOC devkit (Everingham et al. 2010; VOCevaldet.m, VOCap.m).

A detection is matched to the object of its class with the highest IoU. It is a true positive if that IoU reaches the
threshold and no detection of a higher score has matched the object. Difficult objects are ignored, and so are COCO's
crowds and, when masks are scored, objects without a mask.

Pixels are inclusive, as VOC's are: a box from xmin to xmax is xmax - xmin + 1 wide. Boxes here are half-open, with
x1 = xmin - 1 and x2 = xmax, so x2 - x1 is that same width, and the plain IoU is the devkit's.

Letters: n detections, K classes.
"""

from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Bool, Float64, Int64

from twostage.data.dataset import Dataset
from twostage.evaluation.groups import mean_of_defined, one_or_all, pair_blocks, paired_iou
from twostage.evaluation.results import Results
from twostage.ops.run_lengths import RLE


@dataclass(frozen=True, eq=False)
class VocScores:
    """Average precision per class: `ap07` of 11 points (VOC2007), `ap12` of all points (from 2010); -1 undefined."""

    iou: float
    ap07: Float64[np.ndarray, " k"]
    ap12: Float64[np.ndarray, " k"]

    def summary(self, class_id: int | None = None) -> dict[str, float]:
        """The means over the classes that have objects, or the values of one class."""
        rows = one_or_all(class_id)
        return {"voc07": mean_of_defined(self.ap07[rows]), "voc12": mean_of_defined(self.ap12[rows])}


def voc_scores(dataset: Dataset, results: Results, *, iou: float = 0.5, masks: bool = False) -> VocScores:
    """Score every class by the IoU of boxes, or of masks with `masks` (AP^r of Hariharan et al. 2014)."""
    classes = len(dataset.names)
    ignored = _ignored(dataset, masks=masks)
    wanted = np.bincount(dataset.labels[~ignored], minlength=classes)
    order = np.argsort(-results.scores, kind="stable")
    right, counted = match_by_voc(dataset, results, iou=iou, masks=masks)
    ap07, ap12 = np.full(classes, -1.0), np.full(classes, -1.0)
    class_ids = results.class_ids[order]
    for k in np.flatnonzero(wanted):
        rows = order[class_ids == k]
        rows = rows[counted[rows]]
        hits = np.cumsum(right[rows])
        recall, precision = hits / wanted[k], hits / np.arange(1, len(rows) + 1)
        ap07[k], ap12[k] = eleven_point_ap(recall, precision), all_point_ap(recall, precision)
    return VocScores(iou, ap07, ap12)


def match_by_voc(
    dataset: Dataset, results: Results, *, iou: float, masks: bool = False
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which detections are true positives, and which count at all (those on ignored objects do not)."""
    best, overlap = _best_object(dataset, results, masks=masks)
    ignored = np.append(_ignored(dataset, masks=masks), False)
    near = (best >= 0) & (overlap >= iou)
    counted = ~(near & ignored[best])
    candidates = np.flatnonzero(near & counted)
    candidates = candidates[np.argsort(-results.scores[candidates], kind="stable")]
    # The first in order of score matches the object; numpy's unique returns the first of each.
    _, first = np.unique(best[candidates], return_index=True)
    right = np.zeros(len(results), dtype=bool)
    right[candidates[first]] = True
    return right, counted


def _ignored(dataset: Dataset, *, masks: bool) -> Bool[np.ndarray, " b"]:
    ignored = dataset.crowd | dataset.difficult
    return ignored | dataset.unmasked if masks else ignored


def eleven_point_ap(recall: Float64[np.ndarray, " n"], precision: Float64[np.ndarray, " n"]) -> float:
    """Mean over the recalls 0, 0.1 ... 1 of the best precision at that recall or above (VOC2007)."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    # i * 0.1 as in the devkit, with 0.30000000000000004, not i / 10.
    return float(best[np.searchsorted(recall, np.arange(11) * 0.1, side="left")].mean())


def all_point_ap(recall: Float64[np.ndarray, " n"], precision: Float64[np.ndarray, " n"]) -> float:
    """Area under the precision-recall curve, with precision made monotonic (VOC2010 and later)."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())


def _best_object(
    dataset: Dataset, results: Results, *, masks: bool
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Per detection the object of its class and image with the highest IoU (the first of equals), and that IoU."""
    n, classes = len(results), len(dataset.names)
    best, overlap = np.full(n, -1, dtype=np.int64), np.zeros(n)
    owner = dataset.image_indices
    for i, j in pair_blocks(results.images * classes + results.class_ids, owner * classes + dataset.labels):
        if not len(i):
            continue
        iou = _mask_iou(dataset, results, owner, i, j) if masks else paired_iou(results.boxes[i], dataset.boxes[j])
        start = np.flatnonzero(np.diff(i, prepend=-1))
        most = np.maximum.reduceat(iou, start)
        rows = i[start]
        is_most = np.flatnonzero(iou == np.repeat(most, np.diff(np.append(start, len(i)))))
        _, first = np.unique(i[is_most], return_index=True)
        best[rows], overlap[rows] = j[is_most[first]], most
    return best, overlap


def _mask_iou(
    dataset: Dataset, results: Results, owner: np.ndarray, i: np.ndarray, j: np.ndarray
) -> Float64[np.ndarray, " p"]:
    """IoU of the masks of detection `i[p]` and object `j[p]`, computed per class and image."""
    detected = results.masks or []
    truth: dict[int, RLE] = {}
    for image in np.unique(owner[j]).tolist():
        rles = dataset.masks_of(image)
        truth.update(zip(range(int(dataset.offsets[image]), int(dataset.offsets[image + 1])), rles, strict=True))
    overlap = np.zeros(len(i))
    kind = owner[j] * len(dataset.names) + dataset.labels[j]
    order = np.argsort(kind, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1):
        detections, row = np.unique(i[pairs], return_inverse=True)
        objects, column = np.unique(j[pairs], return_inverse=True)
        table = coco_mask.iou([detected[k] for k in detections], [truth[k] for k in objects], [0] * len(objects))
        overlap[pairs] = table[row, column]
    return overlap
