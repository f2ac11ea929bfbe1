"""How far two sets of detections of the same images are the same: one to one, with the differences of each pair."""

from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float64, Int64

from twostage.evaluation.results import Results
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.ops.boxes import iou
from twostage.ops.masks import decode
from twostage.ops.run_lengths import RLE

EDGE = 2  # detections of an image, on both sides together, that rounding may let in or out
PAIRED = 2.0  # pixels: boxes of one class further apart than this are other detections


class Tolerance(NamedTuple):
    """What two computations in float32 may differ by: pixels of a box, a score, the share of a mask's pixels."""

    pixels: float = 1e-2
    scores: float = 1e-4
    masks: float = 1e-2


FLOAT32 = Tolerance()


class Spread(NamedTuple):
    """The largest and the median of some differences; 0 of none."""

    largest: float
    median: float


class Agreement(NamedTuple):
    """How many detections two sides have, how many are the same object, and how far those differ.

    `at_the_edge` are detections without a partner about which rounding decides: their score is no further than the
    tolerance from where the other side's list ends, at the threshold or at the greatest number, or it is weak. `masks`
    are the shares of pixels that differ, None where a side has none, as `one_without_masks` says where only one has
    none. `error` is the mean disagreement of all detections with the best partner, 1 - IoU and the difference of
    scores, and of their masks: 0 where all are equal.
    """

    images: int
    expected: int
    found: int
    matched: int
    at_the_edge: int
    pixels: Spread
    scores: Spread
    masks: Spread | None
    one_without_masks: bool
    error: float

    def same(self, tolerance: Tolerance = FLOAT32) -> bool:
        """Whether every detection has its partner within the tolerance, but for a few at the edge."""
        if self.at_the_edge > EDGE * self.images or (self.expected and not self.matched):
            return False
        pairs = (self.pixels.largest <= tolerance.pixels) and (self.scores.largest <= tolerance.scores)
        masks = self.masks is None or self.masks.largest <= tolerance.masks
        return pairs and masks and self.expected + self.found - 2 * self.matched == self.at_the_edge


def agreement(
    expected: Results,
    found: Results,
    images: int,
    postprocess: PostprocessConfig,
    tolerance: Tolerance = FLOAT32,
    weak: float = 0.0,
) -> Agreement:
    """Two sides' detections of so many images. `postprocess` has the threshold and the number where a list ends.

    Of detections without a partner below the score `weak`, two of an image on each side are at the edge.
    """
    pixels, scores, masks, errors, edge = [], [], [], [], 0
    for image in range(images):
        a, b = (np.flatnonzero(side.images == image) for side in (expected, found))
        near, far = _pairs(expected, a, found, b)
        for i, j in near:
            pixels.append(float(np.abs(expected.boxes[i] - found.boxes[j]).max()))
            scores.append(float(abs(expected.scores[i] - found.scores[j])))
            if expected.masks is not None and found.masks is not None:
                masks.append(_differing(expected.masks[i], found.masks[j]))
        errors += far
        for side, own, other, theirs in ((expected, a, found, b), (found, b, expected, a)):
            alone = np.setdiff1d(own, [pair[side is found] for pair in near])
            end = _end(other.scores[theirs], postprocess)
            at_end = np.abs(side.scores[alone] - end) <= tolerance.scores
            edge += int(at_end.sum()) + min(EDGE, int((~at_end & (side.scores[alone] < weak)).sum()))
    return Agreement(
        images,
        len(expected),
        len(found),
        len(pixels),
        edge,
        _spread(pixels),
        _spread(scores),
        None if expected.masks is None or found.masks is None else _spread(masks),
        len(expected) > 0 and len(found) > 0 and (expected.masks is None) != (found.masks is None),
        (float(np.mean(errors)) if errors else 0.0) + (float(np.mean(masks)) if masks else 0.0),
    )


def _pairs(
    expected: Results, a: Int64[np.ndarray, " n"], found: Results, b: Int64[np.ndarray, " m"]
) -> tuple[list[tuple[int, int]], list[float]]:
    """Pairs of nearest boxes of one class, and the disagreement of each detection with its best partner."""
    if not len(a) or not len(b):
        return [], [1.0] * (len(a) + len(b))
    other_class = expected.class_ids[a, None] != found.class_ids[b]
    distance = np.abs(expected.boxes[a, None] - found.boxes[b]).max(2)
    distance[other_class] = np.inf
    pairs, free = [], distance.copy()
    while (least := free.min()) <= PAIRED:
        i, j = np.unravel_index(np.flatnonzero(free == least)[0], free.shape)
        pairs.append((int(a[i]), int(b[j])))
        free[i], free[:, j] = np.inf, np.inf
    overlap = iou(*(torch.from_numpy(boxes) for boxes in (expected.boxes[a], found.boxes[b]))).numpy()
    alike = overlap * (1 - np.abs(expected.scores[a, None] - found.scores[b]))
    alike[other_class] = 0
    return pairs, [*(1 - alike.max(1)).tolist(), *(1 - alike.max(0)).tolist()]


def _end(scores: Float64[np.ndarray, " n"], postprocess: PostprocessConfig) -> float:
    """The score at which a list of detections ends."""
    return float(scores.min()) if len(scores) >= postprocess.max_det else postprocess.score_threshold


def _differing(a: dict, b: dict) -> float:
    """The share of the pixels in either mask that are not in both; a single one is rounding, whatever its share."""
    first, second = decode([cast(RLE, a), cast(RLE, b)])
    differing = int((first ^ second).sum())
    return differing / int((first | second).sum()) if differing > 1 else 0.0


def _spread(values: list[float]) -> Spread:
    return Spread(max(values), float(np.median(values))) if values else Spread(0.0, 0.0)
