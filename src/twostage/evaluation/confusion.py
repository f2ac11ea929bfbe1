"""Confusion matrix: detections and objects matched by IoU alone, then counted by class.

Letters: K classes; row and column K are the background.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from twostage.data.dataset import Dataset
from twostage.evaluation.groups import box_areas, pair_blocks, paired_intersection, paired_iou
from twostage.evaluation.results import Results


@dataclass(frozen=True, eq=False)
class Confusion:
    """`counts[truth, detected]`: row K has the detections without an object, column K the missed objects."""

    names: tuple[str, ...]
    iou: float
    conf: float
    counts: Int64[np.ndarray, "k1 k1"]


def confusion_matrix(dataset: Dataset, results: Results, *, iou: float = 0.5, conf: float = 0.5) -> Confusion:
    """Match each detection with a score of at least `conf`, the best first, to the free object of the highest IoU.

    The IoU must be at least `iou`; among equal IoUs an object of the same class goes first, then the lower index.
    Unmatched detections on a crowd or a difficult object (half of the detection inside, or IoU at least `iou`) are not
    counted, nor are these objects.
    """
    classes = len(dataset.names)
    rows = np.flatnonzero(results.scores >= conf)
    rows = rows[np.argsort(-results.scores[rows], kind="stable")]
    owner = dataset.image_indices
    ignored = dataset.crowd | dataset.difficult
    taken = np.full(len(dataset.labels), -1, dtype=np.int64)
    match = np.full(len(rows), -1, dtype=np.int64)
    ignorable = np.zeros(len(rows), dtype=bool)
    for i, j in pair_blocks(results.images[rows], owner):
        boxes = results.boxes[rows[i]]
        overlap = paired_iou(boxes, dataset.boxes[j])
        inside = paired_intersection(boxes, dataset.boxes[j]) >= 0.5 * box_areas(boxes)
        ignorable[i[ignored[j] & (inside | (overlap >= iou))]] = True
        near = np.flatnonzero((overlap >= iou) & ~ignored[j])
        i, j, overlap = i[near], j[near], overlap[near]
        other = results.class_ids[rows[i]] != dataset.labels[j]
        order = np.lexsort((other, -overlap, i))
        for detection, truth in zip(i[order].tolist(), j[order].tolist(), strict=True):
            if match[detection] < 0 and taken[truth] < 0:
                match[detection], taken[truth] = truth, detection
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    background = np.array(classes)
    detected = results.class_ids[rows]
    matched = match >= 0
    np.add.at(counts, (dataset.labels[match[matched]], detected[matched]), 1)
    np.add.at(counts, (background, detected[~matched & ~ignorable]), 1)
    np.add.at(counts, (dataset.labels[(taken < 0) & ~ignored], background), 1)
    return Confusion(tuple(dataset.names), iou, conf, counts)
