"""Paste a grid of mask probabilities over a box into the image.

Bilinear interpolation along each axis is a product with a matrix of two numbers per row, so that a mask of any size
takes two small products. The result is a run-length code (RLE) made from the pixels of the box alone: the cost depends
on the size of the box and not of the image. Letters: n masks, m cells along a side of the grid.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32
from numpy.typing import NDArray

from twostage.ops.run_lengths import RLE, compress

Paste = Literal["exact", "rounded"]


class Patch(NamedTuple):
    """The pixels of a mask in the window of the image that its box covers."""

    top: int
    left: int
    inside: Bool[np.ndarray, "h w"]


def paste(
    masks: Float32[np.ndarray, "n m m"],
    boxes: Float32[np.ndarray, "n 4"],
    height: int,
    width: int,
    *,
    threshold: float = 0.5,
    way: Paste = "exact",
) -> list[RLE]:
    """The masks as RLEs of an image of this size: pixels with a probability of at least `threshold` are inside.

    `boxes` are xyxy pixels. The cells of the grid tile the box; beyond the centres of the outer cells the probability
    falls to 0 within one cell. `way` "exact" (detectron2, mmdetection) samples at the pixel centres; "rounded"
    (torchvision) enlarges the box by a cell, rounds it to whole pixels and stretches the grid to them.
    """
    return [encoded(patch, height, width) for patch in patches(masks, boxes, height, width, threshold, way)]


def patches(
    masks: Float32[np.ndarray, "n m m"],
    boxes: Float32[np.ndarray, "n 4"],
    height: int,
    width: int,
    threshold: float,
    way: Paste,
) -> Iterator[Patch]:
    """Each mask in the window of its box."""
    spread = _exact if way == "exact" else _rounded
    cells = masks.shape[1]
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))  # the probability is 0 outside the grid
    for grid, box in zip(padded, boxes, strict=True):
        left, across = _cell_weights(*spread(box[0], box[2], cells), cells, width)
        top, down = _cell_weights(*spread(box[1], box[3], cells), cells, height)
        yield Patch(top, left, down @ grid @ across.T >= threshold)


def _exact(low: np.float32, high: np.float32, cells: int) -> tuple[int, NDArray]:
    """The first pixel that a side of a box covers, and the positions of it and all later pixels among the cells.

    Position k is the centre of cell k, counted from 1; 0 and `cells` + 1 are the centres of the padding.
    """
    cell = max(float(high) - float(low), 1e-6) / cells
    first, last = math.floor(low - cell / 2), math.ceil(high + cell / 2)
    return first, (np.arange(first, last) + 0.5 - low) / cell + 0.5


def _rounded(low: np.float32, high: np.float32, cells: int) -> tuple[int, NDArray]:
    """The same with torchvision's rounding, in float32 as there."""
    middle, half = (low + high) / np.float32(2), (high - low) / np.float32(2) * np.float32((cells + 2) / cells)
    first = int(middle - half)  # rounds towards 0, as torchvision's conversion to integers
    count = max(int(middle + half) + 1 - first, 1)
    return first, (np.arange(count) + 0.5) * ((cells + 2) / count) - 0.5


def _cell_weights(first: int, places: NDArray, cells: int, limit: int) -> tuple[int, Float32[np.ndarray, "p c"]]:
    """The first pixel inside the image, and the weights of the padded cells for it and all later pixels."""
    begin = min(max(first, 0), limit)
    places = np.clip(places[begin - first : max(limit - first, 0)], 0, cells + 1)
    lower = np.minimum(np.floor(places), cells).astype(np.int64)
    rows, weights = np.arange(len(places)), np.zeros((len(places), cells + 2), dtype=np.float32)
    weights[rows, lower] = 1 - (places - lower)
    weights[rows, lower + 1] = places - lower
    return begin, weights


def encoded(patch: Patch, height: int, width: int) -> RLE:
    """The RLE of an image of this size, from the places where the window changes down the columns."""
    top, left, inside = patch
    # A row of zeros below each column ends its run; `_touching` joins runs that continue in the next column.
    rows = inside.shape[0]
    column = np.zeros((inside.shape[1], rows + 1), dtype=np.int8)
    column[:, :rows] = inside.T
    flat = column.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0), append=np.int8(0)))
    at = (left + changes // (rows + 1)) * height + top + changes % (rows + 1)
    if rows == height:
        at = _touching(at)
    if len(at) and at[-1] == height * width:
        at = at[:-1]  # no run after a mask that ends with the image
    runs = np.diff(at, prepend=0, append=height * width)
    return {"size": [height, width], "counts": compress(runs)}


def _touching(at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The changes without those where a run ends and the next begins at once: windows as high as the image."""
    ends, begins = at[1:-1:2], at[2::2]
    keep = np.ones(len(at), dtype=bool)
    same = ends == begins
    keep[1:-1:2], keep[2::2] = ~same, ~same
    return at[keep]
