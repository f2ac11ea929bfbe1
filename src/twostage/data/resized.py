"""Images that were resized after they were annotated: boxes in pixels of the stated sizes are then elsewhere."""

import numpy as np
from jaxtyping import Bool, Float64, Int32

_FEWEST = 3  # images
_SHARE = 0.5  # of the images, whose size is another one
_REACH = 0.75  # of the stated size, which boxes reach where they are drawn on it
_SLACK = 0.01  # of a side, and a pixel, by which annotators draw over the border
_FIT = 0.99  # of the boxes, which fit the stated size
_MISFIT = 0.05  # of the boxes, which do not fit the image


def is_resized(stated: Int32[np.ndarray, "m 2"], sizes: Int32[np.ndarray, "m 2"]) -> Bool[np.ndarray, " m"]:
    """Which images have another size than is stated, if most have and all look resized; else none.

    That is, they keep their proportions, or all have one size. Sizes are (height, width), 0 where unknown.
    """
    known = (stated > 0).all(axis=1) & (sizes > 0).all(axis=1)
    other = known & (stated != sizes).any(axis=1)
    count = int(other.sum())
    if count < _FEWEST or count < _SHARE * known.sum():
        return np.zeros(len(stated), dtype=bool)
    before, after = stated[other].astype(np.float64), sizes[other].astype(np.float64)
    proportions = np.abs(after[:, 0] * before[:, 1] - after[:, 1] * before[:, 0]) <= before.max(axis=1)
    together = len(np.unique(after, axis=0)) == 1 and len(np.unique(before, axis=0)) > 1
    return other if together or proportions.all() else np.zeros(len(stated), dtype=bool)


def on_stated(boxes: Float64[np.ndarray, "b 4"], stated: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether boxes xyxy fit the stated sizes [b, 2] of their images, and not, or hardly, the images' own."""
    finite = np.isfinite(boxes).all(axis=1)
    ends, before, after = boxes[finite][:, 2:], stated[finite][:, ::-1], sizes[finite][:, ::-1]
    if not len(ends) or _within(ends, before) < _FIT:
        return False
    larger = (after > before).all()
    return bool(1 - _within(ends, after) >= _MISFIT or (larger and (ends / before).max() >= _REACH))


def _within(ends: np.ndarray, sizes: np.ndarray) -> float:
    """The share of boxes that end within images of these sizes."""
    return float((ends <= sizes * (1 + _SLACK) + 1).all(axis=1).mean())
