"""Which images are in which batch: a function of seed and epoch, so that training can resume at any step."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int, Int64

from twostage.data.batch import canvas_shape
from twostage.data.randomness import generator
from twostage.data.resize import Resize

WINDOW = 32  # batches within which images are sorted by orientation


class Plan(NamedTuple):
    """The images of one step of one process."""

    step: int
    epoch: int
    indices: Int64[np.ndarray, " n"]


def steps_per_epoch(images: int, batch: int) -> int:
    """Number of batches that contain every image; the last is filled with images of the same epoch."""
    return -(-images // batch)


def training_plans(
    sizes: Int[np.ndarray, "m 2"],
    *,
    batch: int,
    seed: int,
    start: int,
    rank: int,
    world: int,
    repeats: Float64[np.ndarray, " m"] | None = None,
) -> Iterator[Plan]:
    """The share of process `rank` in every step from `start` on, without end; `batch` is that of all processes."""
    each, share = steps_per_epoch(images_per_epoch(len(sizes), repeats), batch), batch // world
    step = start
    while True:
        epoch = step // each
        rows = epoch_order(sizes, batch=batch, seed=seed, epoch=epoch, repeats=repeats)
        for row in rows[step % each :]:
            yield Plan(step, epoch, row[rank * share : (rank + 1) * share])
            step += 1


def images_per_epoch(images: int, repeats: Float64[np.ndarray, " m"] | None) -> int:
    """How many images an epoch has, each counted as often as it comes."""
    # An exact sum does not depend on the order of the images, which each epoch has anew.
    return images if repeats is None else math.ceil(math.fsum(repeats))


def epoch_order(
    sizes: Int[np.ndarray, "m 2"],
    *,
    batch: int,
    seed: int,
    epoch: int,
    repeats: Float64[np.ndarray, " m"] | None = None,
) -> Int64[np.ndarray, "steps batch"]:
    """The image indices of every batch of an epoch, shuffled; few batches mix portrait and landscape images.

    Images are shuffled, sorted by orientation within windows of `WINDOW` batches, and the batches shuffled. Each comes
    once, or on average as often as `repeats` says.
    """
    rng = generator(seed, epoch)
    order = rng.permutation(len(sizes))
    if repeats is not None:
        order = rng.permutation(np.repeat(order, _rounded(repeats[order], rng.random())))
    steps = steps_per_epoch(len(order), batch)
    order = np.resize(order, steps * batch)
    upright = sizes[order, 0] > sizes[order, 1]
    window = np.arange(len(order)) // (WINDOW * batch)
    grouped = order[np.lexsort((upright, window))].reshape(steps, batch)
    return grouped[rng.permutation(steps)]


def _rounded(repeats: Float64[np.ndarray, " m"], offset: float) -> Int64[np.ndarray, " m"]:
    """Whole numbers, each the one below or above, whose sum is that of `images_per_epoch`.

    For an offset that is uniform from 0 to 1 their means are the given numbers (systematic sampling).
    """
    whole = images_per_epoch(len(repeats), repeats)
    ends = np.cumsum(repeats) * (whole / repeats.sum())
    ends[-1] = whole
    return np.diff(np.floor(ends + offset).astype(np.int64), prepend=0)


def evaluation_plans(
    sizes: Int[np.ndarray, "m 2"], *, resize: Resize, divisor: int, batch: int, rank: int, world: int
) -> list[Plan]:
    """Every image once, at most `batch` together, all on the canvas that each would have alone.

    Padding beside an image changes features near its border; this way no detection depends on `batch`.
    """
    canvases = np.array([canvas_shape(*resize.shape(int(h), int(w)), divisor) for h, w in sizes], dtype=np.int64)
    _, kind = np.unique(canvases.reshape(-1, 2), axis=0, return_inverse=True)
    alike = [np.flatnonzero(kind.reshape(-1) == k) for k in range(kind.max(initial=-1) + 1)]
    chunks = [some[i : i + batch] for some in alike for i in range(0, len(some), batch)]
    return [Plan(step, 0, chunk) for step, chunk in enumerate(chunks)][rank::world]
