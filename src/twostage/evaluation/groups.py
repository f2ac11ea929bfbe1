"""Pairs of rows of flat arrays: detections and ground truth of one class on one image."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64, Int64

# Pairs compared at once: limits memory to a few hundred megabytes for any number of boxes per image.
_BLOCK = 2_000_000


def mean_of_defined(values: np.ndarray) -> float:
    """The mean of the values that are not -1; -1 if there are none."""
    defined = values[values >= 0]
    return float(defined.mean()) if defined.size else -1.0


def one_or_all(index: int | None) -> slice:
    """The rows of one class, or of all."""
    return slice(None) if index is None else slice(index, index + 1)


def pair_blocks(
    left: Int64[np.ndarray, " n"], right: Int64[np.ndarray, " m"]
) -> Iterator[tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]]:
    """All pairs (i, j) with `left[i] == right[j]`, ordered by i, then j, in blocks that never split an i."""
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    first = np.searchsorted(ordered, left, side="left")
    count = np.searchsorted(ordered, left, side="right") - first
    total = np.cumsum(count)
    start = 0
    while start < len(left):
        done = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, done + _BLOCK, side="right")))
        rows = np.arange(start, end)
        i = np.repeat(rows, count[rows])
        within = np.arange(len(i)) - np.repeat(total[rows] - count[rows] - done, count[rows])
        yield i, order[first[i] + within]
        start = end


def paired_iou(a: Float[np.ndarray, "p 4"], b: Float[np.ndarray, "p 4"]) -> Float64[np.ndarray, " p"]:
    """IoU of the boxes in each row, in float64; 0 if both are empty."""
    common = paired_intersection(a, b)
    union = box_areas(a) + box_areas(b) - common
    iou: np.ndarray = np.divide(common, union, out=np.zeros(len(common)), where=union > 0)
    return iou


def paired_intersection(a: Float[np.ndarray, "p 4"], b: Float[np.ndarray, "p 4"]) -> Float64[np.ndarray, " p"]:
    """Intersection area of the boxes in each row."""
    sides = np.minimum(a[:, 2:], b[:, 2:], dtype=np.float64) - np.maximum(a[:, :2], b[:, :2], dtype=np.float64)
    areas: np.ndarray = sides.clip(min=0).prod(axis=1)
    return areas


def box_areas(boxes: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, " n"]:
    """Width times height in float64."""
    areas: np.ndarray = (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).prod(axis=1)
    return areas
