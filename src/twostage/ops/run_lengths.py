"""COCO's compressed run-length code of a mask, in numpy.

An RLE is `{"size": [h, w], "counts": bytes}`: lengths of runs of 0 and 1 in turn, column by column. The compressed code
holds 5 bits per character, lowest first, and a bit for "more follows"; from the fourth run on it is the difference to
the run two before (cocoapi, maskApi.c).
"""

from typing import TypedDict

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

_GROUPS = 5 * np.arange(13)  # bits of the groups of a run; one of 64 bits has 13


class RLE(TypedDict):
    """A mask: its height and width, and its runs in COCO's compressed code."""

    size: list[int]
    counts: bytes


def compress(runs: Int[np.ndarray, " k"]) -> bytes:
    """The code of the run lengths of a mask."""
    numbers = runs.astype(np.int64)
    numbers[3:] -= runs[1:-2]
    rest: NDArray[np.int64] = numbers[:, None] >> _GROUPS
    group = rest & 0x1F
    more = np.where(group & 0x10, rest >> 5 != -1, rest >> 5 != 0)
    written = np.ones_like(more)
    written[:, 1:] = np.logical_and.accumulate(more, axis=1)[:, :-1]
    return bytes((group + (more << 5) + 48)[written].astype(np.uint8))
