"""Which label explains which candidate: every label stands for at most one object, and every object for one label.

Letters: G labels, N candidates.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from twostage.inspection.evidence import Evidence
from twostage.ops.boxes import iou

TOUCHING = 0.2  # IoU from which on a label can stand for a candidate: a box that is a third of its side off has 0.5


class Explained(NamedTuple):
    """Pairs of labels and candidates, -1 where there is none, and their overlaps.

    `inside` is the largest share of each candidate that lies in one crowd label.
    """

    candidate: Int[np.ndarray, " g"]
    label: Int[np.ndarray, " n"]
    overlaps: Float[np.ndarray, "g n"]
    inside: Float[np.ndarray, " n"]


def explain(
    evidence: Evidence,
    boxes: Float[np.ndarray, "g 4"],
    crowd: Bool[np.ndarray, " g"],
    certainty: Float[np.ndarray, " n"],
) -> Explained:
    """Pair labels and candidates, those with the largest product of IoU and certainty first; classes do not matter.

    A box that is off still stands for its object: with a threshold of 0.5 alone, the object of a loose box would be
    called missing.
    """
    overlaps = iou_of(boxes, evidence.boxes)
    weight = np.where(crowd[:, None], 0.0, overlaps * (certainty + 1e-3))
    candidate, label = np.full(len(boxes), -1), np.full(len(evidence.boxes), -1)
    for place in np.argsort(-weight, axis=None, kind="stable")[: int((weight > 0).sum())].tolist():
        g, n = divmod(place, len(evidence.boxes))
        if overlaps[g, n] >= TOUCHING and candidate[g] < 0 and label[n] < 0:
            candidate[g], label[n] = n, g
    inside = _share_inside(evidence.boxes, boxes[crowd]).max(axis=1, initial=0.0)
    return Explained(candidate, label, overlaps, inside)


def iou_of(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """IoU of all pairs."""
    return iou(torch.from_numpy(np.asarray(a)).float(), torch.from_numpy(np.asarray(b)).float()).numpy()


def _share_inside(boxes: Float[np.ndarray, "n 4"], regions: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """The share of each box that lies in each region."""
    low, high = (
        np.maximum(boxes[:, None, :2], regions[None, :, :2]),
        np.minimum(boxes[:, None, 2:], regions[None, :, 2:]),
    )
    area = (boxes[:, 2:] - boxes[:, :2]).clip(min=1e-6).prod(axis=1)
    return (high - low).clip(min=0).prod(axis=2) / area[:, None]
