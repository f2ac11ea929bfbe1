"""NMS on the CPU: boxes sorted by image, group and score are worked off in blocks, the best first.

A block settles itself, then its kept boxes thin out the rest of the group. Small groups share blocks. In a large group
the rest lies sorted along x, and a kept box meets only those near enough to overlap it by more than the threshold. All
in numpy, whose calls cost a third of torch's, on tiles that stay in the cache.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.ops.boxes import precise

_BLOCK = 256
_ROWS = 64  # of a block at a time: half of its pairs need no look
_SLAB = 16  # kept boxes, neighbours along x, that meet the rest of a large group together
_LARGE = 1500  # boxes of a group, from where sorting along x pays
_TILE = 1 << 15  # pairs: three float32 buffers of it fit the second-level cache of common CPUs
_LATER = np.triu(np.ones((_ROWS, _BLOCK), dtype=bool), 1)


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, iou: float, top: int, candidates: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU kernel of `twostage::nms`."""
    n = len(scores)
    index, kept = torch.zeros(n, top, dtype=torch.int64), torch.zeros(n, top, dtype=torch.bool)
    image, rank, box, overflow = _ranked(scores, valid, candidates)
    if len(image):
        corners = precise(boxes).numpy()[image, box]
        key = image if groups is None else _keys(image, groups.numpy()[image, box])
        survives = _best(corners, key, image, rank, iou, top)
        image, box = image[survives], box[survives]
        place = np.arange(len(image)) - np.searchsorted(image, image)
        fits = place < top
        index.numpy()[image[fits], place[fits]] = box[fits]
        kept.numpy()[image[fits], place[fits]] = True
    return index, kept, overflow


def _best(corners: NDArray, key: NDArray, image: NDArray, rank: NDArray, iou: float, top: int) -> NDArray:
    """Which boxes survive; of those behind the best `top` survivors of an image, maybe none.

    A box depends on better ones alone. When the best of each image, twice as many as wanted, leave enough, that is the
    answer; they are tried where that costs little, at most a quarter of the whole.
    """
    survives = np.zeros(len(image), dtype=bool)
    first = rank < 2 * top
    if 2 * np.count_nonzero(first) <= len(first):
        survives[first] = _greedy(corners[first], key[first], iou)
        size = int(image[-1]) + 1
        enough = np.bincount(image[survives], minlength=size) >= np.minimum(np.bincount(image, minlength=size), top)
        if enough.all():
            return survives
    return _greedy(corners, key, iou)


def exact_threshold(iou: float, dtype: np.dtype) -> float:
    """The largest number of the dtype that is not above `iou`: comparing with it is comparing with `iou` in float64."""
    near = dtype.type(iou)
    return float(near if float(near) <= iou else np.nextafter(near, dtype.type(-np.inf)))


def _ranked(scores: Tensor, valid: Tensor, candidates: int | None) -> tuple[NDArray, NDArray, NDArray, Tensor]:
    """Image, rank and box number of the candidates, by image and then by rank; and which images have too many."""
    order = scores.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    taken = valid.gather(1, order)
    count = taken.cumsum(1, dtype=torch.int32)
    overflow = torch.zeros(len(scores), dtype=torch.bool)
    if candidates is not None:
        taken &= count <= candidates
        overflow = valid.sum(1) > candidates
    image, place = np.nonzero(taken.numpy())
    return image, count.numpy()[image, place] - 1, order.numpy()[image, place], overflow


def _keys(image: NDArray, group: NDArray) -> NDArray:
    """One integer for each image and group, images first; short where it can be, for numpy sorts those by radix."""
    lowest, highest = int(group.min()), int(group.max())
    span = highest - lowest + 1
    key = image * span + (group.astype(np.int64) - lowest)
    return key.astype(np.uint16) if (int(image[-1]) + 1) * span < 2**16 else key


def _greedy(corners: NDArray, key: NDArray, iou: float) -> NDArray:
    """Which boxes survive among those of equal keys, given by image and then by rank."""
    order = np.argsort(key, kind="stable")
    edges = np.flatnonzero(np.diff(key[order])) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(key)]])
    x1, y1, x2, y2 = corners[order].T
    data = np.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])
    # Inverted boxes overlap nothing, whatever the sign of their area.
    data[:4, (x2 < x1) | (y2 < y1)] = np.array([[np.inf], [np.inf], [-np.inf], [-np.inf]])
    threshold = exact_threshold(iou, data.dtype)
    buffers = np.empty((3, min(_TILE, len(key) ** 2)), dtype=data.dtype)
    small = ends - starts < _LARGE
    survives = np.empty(len(key), dtype=bool)
    with np.errstate(all="ignore"):  # boxes without area divide 0 by 0, which is no overlap
        for start, end in zip(starts[~small], ends[~small], strict=True):
            survives[order[start:end]] = _large_group(data[:, start:end], buffers, threshold)
        sizes = (ends - starts)[small]
        if len(sizes):
            some = np.repeat(small, ends - starts)
            survives[order[some]] = _small_groups(data[:, some], np.cumsum(sizes).repeat(sizes), buffers, threshold)
    return survives


def _small_groups(data: NDArray, ends: NDArray, buffers: NDArray, threshold: float) -> NDArray:
    """Which boxes survive, given group by group and best first, with the end of each one's group."""
    number = np.arange(len(ends))
    survives = np.zeros(len(ends), dtype=bool)
    start = 0
    while start < len(ends):
        stop = min(start + _BLOCK, len(ends))
        if ends[start] > stop:  # half of it may settle enough for the rest
            stop = start + _BLOCK // 2
        last = int(ends[stop - 1])
        if ends[start] < last and stop < last:  # a group that fits a block is not split
            stop = start + int(np.searchsorted(ends[start:stop], last))
            last = stop
        block, end = data[:, start:stop], ends[start:stop]
        keep = _settle(_suppresses(block, end, buffers, threshold))
        survives[number[start:stop][keep]] = True
        if last > stop:
            better = np.ascontiguousarray(block[:, keep])
            left = stop + np.flatnonzero(~_touched(better, data[:, stop:last], buffers, threshold))
            # The rest of the group closes up to its end, where the next group begins.
            stop = last - len(left)
            data[:, stop:last] = data[:, left]
            number[stop:last] = number[left]
        start = stop
    return survives


def _large_group(data: NDArray, buffers: NDArray, threshold: float) -> NDArray:
    """Which boxes of one group survive, given best first."""
    survives = np.zeros(data.shape[1], dtype=bool)
    waiting = np.ones(data.shape[1], dtype=bool)
    number = np.argsort(data[0])
    rest = data[:, number]
    start = 0
    while True:
        block = start + np.flatnonzero(waiting[start : start + 8 * _BLOCK])[:_BLOCK]
        if not len(block):
            if start + 8 * _BLOCK >= len(waiting):
                return survives
            start += 8 * _BLOCK
            continue
        boxes = data[:, block]
        same = np.full(len(block), len(waiting))
        kept = block[_settle(_suppresses(boxes, same, buffers, threshold))]
        survives[kept] = True
        waiting[block] = False
        start = int(block[-1]) + 1
        for slab, near in _neighbours(data[:, kept], rest[0], threshold):
            touched = _touched(slab, rest[:, near], buffers, threshold)
            waiting[number[near][touched]] = False
        live = waiting[number]
        number, rest = number[live], rest[:, live]


def _neighbours(kept: NDArray, x1: NDArray, threshold: float) -> Iterator[tuple[NDArray, slice]]:
    """Slabs of kept boxes, and which of the boxes with sorted left edges can overlap one of them enough.

    IoU is at most the overlap along x by the width of either box. So if it exceeds t, another box of width v begins at
    most (1 - t) w right of one of width w, and at most (1 - t) v left of it, where v <= w / t.
    """
    kept = kept[:, kept[0] <= kept[2]]  # an inverted box overlaps nothing, and its bounds would be NaN
    if not kept.shape[1]:
        return
    kept = kept[:, np.argsort(kept[0])]
    width = kept[2] - kept[0]
    # A little wider than exact, for the rounding of coordinates and of the IoU.
    margin = 1e-3 * width + 1e-5 * np.abs(kept[0])
    right = kept[0] + (1 - threshold) * width + margin
    left = kept[0] - ((1 - threshold) * width / threshold if threshold > 0 else np.inf) - margin
    firsts = range(0, kept.shape[1], _SLAB)
    low = np.searchsorted(x1, np.minimum.reduceat(left, firsts), side="left")
    high = np.searchsorted(x1, np.maximum.reduceat(right, firsts), side="right")
    for first, begin, end in zip(firsts, low.tolist(), high.tolist(), strict=True):
        if begin < end:
            yield np.ascontiguousarray(kept[:, first : first + _SLAB]), slice(begin, end)


def _suppresses(block: NDArray, ends: NDArray, buffers: NDArray, threshold: float) -> NDArray:
    """For each box of a block which later ones of its group it overlaps."""
    size = len(ends)
    found = np.zeros((size, size), dtype=bool)
    for start in range(0, size, _ROWS):
        stop = min(start + _ROWS, size)
        far = min(size, start + int(np.count_nonzero(ends[start:] <= ends[stop - 1])))
        part = found[start:stop, start:far]
        np.logical_and(
            _overlap(block[:, start:stop], block[:, start:far], buffers, threshold),
            _LATER[: stop - start, : far - start],
            out=part,
        )
        if ends[start] != ends[stop - 1]:
            part &= ends[start:stop, None] == ends[start:far]
    return found


def _settle(suppresses: NDArray) -> NDArray:
    """Which boxes of a block, best first, survive, given which later ones each would suppress.

    The greedy result is the only fixed point of "kept unless a better one is kept that overlaps it", and each sweep
    makes at least one more box final.
    """
    some: NDArray = np.any(suppresses, axis=1)
    keep: NDArray = ~np.any(suppresses, axis=0)
    while True:
        again: NDArray = ~np.any(suppresses[keep & some], axis=0)
        if (again == keep).all():
            return keep
        keep = again


def _touched(kept: NDArray, rest: NDArray, buffers: NDArray, threshold: float) -> NDArray:
    """Whether any of the kept boxes suppresses each of the rest."""
    touched = np.zeros(rest.shape[1], dtype=bool)
    if kept.shape[1]:
        step = _TILE // kept.shape[1]
        for start in range(0, rest.shape[1], step):
            part = slice(start, start + step)
            np.any(_overlap(kept, rest[:, part], buffers, threshold), axis=0, out=touched[part])
    return touched


def _overlap(a: NDArray, b: NDArray, buffers: NDArray, threshold: float) -> NDArray:
    """Whether the IoU of each pair is above the threshold, in the order of arithmetic of torchvision's kernel."""
    shape = a.shape[1], b.shape[1]
    width, height, scratch = (buffer[: shape[0] * shape[1]].reshape(shape) for buffer in buffers)
    ax1, ay1, ax2, ay2, a_area = a[:, :, None]
    bx1, by1, bx2, by2, b_area = b
    np.minimum(ax2, bx2, out=width)
    np.maximum(ax1, bx1, out=scratch)
    np.subtract(width, scratch, out=width)
    np.minimum(ay2, by2, out=height)
    np.maximum(ay1, by1, out=scratch)
    np.subtract(height, scratch, out=height)
    # Below 0 they would be clamped; as it is one negative factor gives a negative ratio, and two are caught below.
    intersection = np.multiply(width, height, out=height)
    union = np.add(a_area, b_area, out=scratch)
    np.subtract(union, intersection, out=union)
    above: NDArray = np.divide(intersection, union, out=scratch) > threshold
    above &= width > 0
    return above
