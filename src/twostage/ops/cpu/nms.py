"""NMS on the CPU: in rounds, the best boxes of every image and group first.

Each round decides among its best boxes, then removes what the kept ones suppress from the rest. Boxes are sorted along
x within their group: a box is compared only with those near enough to overlap it by more than the threshold, and the
IoU is computed only for those near along y too, a few per cent. Within a round all boxes are compared with their next
neighbour along x at once, then with the one after it, and so on; in windows where some have very many, as in a column.
All in numpy, whose calls cost a third of torch's.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.ops.boxes import precise

_FRONT = 256  # boxes of a group in the first round; or all spread ones, where none has more than twice as many
_GROWTH = 4  # factor of the front from round to round
_ROWS = 64  # neighbours along x that share a window of the boxes they may overlap
# A step to the next neighbour costs as much as looking at so many boxes, and a window so much for each of its boxes.
_STEP, _WINDOW = 2500, 500


class _Sorted(NamedTuple):
    """Boxes by group and, within it, along x; `place` grows from group to group, one number for both."""

    data: NDArray  # [5, m]: x1, y1, x2, y2, area
    place: NDArray  # [m] of the left edge
    reach: NDArray  # [m], the last place of a box that begins right of this one and may overlap it enough
    depth: NDArray  # [m], the same along y

    def take(self, some: NDArray) -> "_Sorted":
        """Some of the boxes, in the same order."""
        return _Sorted(self.data[:, some], self.place[some], self.reach[some], self.depth[some])


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, iou: float, top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU kernel of `twostage::nms`."""
    n = len(scores)
    index, kept = torch.zeros(n, top, dtype=torch.int64), torch.zeros(n, top, dtype=torch.bool)
    image, rank, box = _ranked(scores, valid)
    if len(image):
        corners = precise(boxes).numpy()[image, box]
        key = image if groups is None else _keys(image, groups.numpy()[image, box])
        with np.errstate(all="ignore"):  # areas of 0 and of infinity give a NaN IoU: no overlap
            survives = _best(corners, key, image, rank, iou, top)
        image, box = image[survives], box[survives]
        place = np.arange(len(image)) - np.searchsorted(image, image)
        fits = place < top
        index.numpy()[image[fits], place[fits]] = box[fits]
        kept.numpy()[image[fits], place[fits]] = True
    return index, kept, torch.zeros(n, dtype=torch.bool)


def _best(corners: NDArray, key: NDArray, image: NDArray, rank: NDArray, iou: float, top: int) -> NDArray:
    """Which boxes survive; those after the best `top` survivors of an image may be missing.

    A box depends only on better ones. If the `2 * top` best boxes of each image leave enough survivors, that is the
    result; this is tried if it costs little, at most a quarter of the whole.
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


def _ranked(scores: Tensor, valid: Tensor) -> tuple[NDArray, NDArray, NDArray]:
    """Image, rank and box number of the valid boxes, by image and then by rank."""
    order = scores.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    taken = valid.gather(1, order)
    count = taken.cumsum(1, dtype=torch.int32)
    image, place = np.nonzero(taken.numpy())
    return image, count.numpy()[image, place] - 1, order.numpy()[image, place]


def _keys(image: NDArray, group: NDArray) -> NDArray:
    """One integer per image and group, images first; 16 bits if possible, because numpy sorts those by radix."""
    lowest, highest = int(group.min()), int(group.max())
    span = highest - lowest + 1
    key = image * span + (group.astype(np.int64) - lowest)
    return key.astype(np.uint16) if (int(image[-1]) + 1) * span < 2**16 else key


def _greedy(corners: NDArray, key: NDArray, iou: float) -> NDArray:
    """Which boxes survive among those of equal keys; boxes are ordered by image, then by rank."""
    survives = (corners[:, 0] > corners[:, 2]) | (corners[:, 1] > corners[:, 3])  # inverted boxes overlap nothing
    sound = np.flatnonzero(~survives)
    by_rank = sound[np.argsort(key[sound], kind="stable")]  # group by group, the best of each first
    if not len(by_rank):
        return survives
    begins = np.concatenate([[True], np.diff(key[by_rank]) != 0])
    group = np.cumsum(begins) - 1
    threshold = exact_threshold(iou, corners.dtype)
    boxes, rank = _sorted(corners[by_rank], group, threshold)
    first = np.flatnonzero(begins)[group]  # rank of the best of each box's group
    kept = np.zeros(len(by_rank), dtype=bool)  # by rank, as `waiting`
    waiting = np.ones(len(by_rank), dtype=bool)
    largest = int(np.bincount(group).max())
    front = largest if largest <= 2 * _FRONT and _is_spread(_neighbours(boxes)) else _FRONT
    while waiting.any():
        before = np.cumsum(waiting) - waiting
        leading = waiting & (before - before[first] < front)
        some = np.flatnonzero(leading[rank])
        number = rank[some]
        chosen = boxes.take(some)
        i, j = _pairs_within(chosen, threshold)
        better, worse = np.where(number[i] < number[j], (i, j), (j, i))
        keep = _settle(better, worse, len(some))
        kept[number[keep]] = True
        waiting &= ~leading
        left = np.flatnonzero(waiting[rank])
        if len(left):
            kept_boxes, others = chosen.take(np.flatnonzero(keep)), boxes.take(left)
            waiting[rank[left[_pairs(kept_boxes, others, threshold)[1]]]] = False
            waiting[rank[left[_pairs(others, kept_boxes, threshold)[0]]]] = False
        front *= _GROWTH
    survives[by_rank[kept]] = True
    return survives


def _sorted(corners: NDArray, group: NDArray, threshold: float) -> tuple[_Sorted, NDArray]:
    """The boxes sorted along x within groups, and the place of each in the given order.

    IoU is at most the overlap along x divided by the width of either box. So if it exceeds t and the other box starts
    right of a box of width w, it starts at most (1 - t) w to the right, plus a little for rounding.
    """
    x1 = np.clip(corners[:, 0].astype(np.float64), -1e30, 1e30)
    low, extent = x1.min(), x1.max() - x1.min()
    start = group * (2 * extent + 1)
    order = np.argsort(start + (x1 - low))
    data = np.empty((5, len(order)), dtype=corners.dtype)
    data[:4] = corners.T[:, order]
    sides = data[2:4] - data[:2]
    data[4] = sides[0] * sides[1]
    slack = sides * (1 - threshold + 1e-3) + 1e-5 * np.abs(data[:2])
    start, x1 = start[order], x1[order]
    # Rounding keeps the order of the sums: boxes that overlap stay within reach.
    reach = start + np.minimum((x1 + slack[0]) - low, extent)
    return _Sorted(data, start + (x1 - low), reach, data[1] + slack[1]), order


def _pairs_within(boxes: _Sorted, threshold: float) -> tuple[NDArray, NDArray]:
    """Indices of pairs of different boxes that overlap by more than the threshold; of equal `place` perhaps twice."""
    count = _neighbours(boxes)
    if not _is_spread(count):
        i, j = _pairs(boxes, boxes, threshold)
        return i[i != j], j[i != j]
    y, depth = boxes.data[1], boxes.depth
    pairs = [(np.zeros(0, dtype=np.int64),) * 2]
    for step in range(1, int(count.max(initial=0)) + 1):
        near = y[step:] <= depth[:-step]
        near &= y[:-step] <= depth[step:]
        near &= count[:-step] >= step
        (i,) = near.nonzero()
        pairs.append((i, i + step))
    i, j = (np.concatenate(numbers) for numbers in zip(*pairs, strict=True))
    above = _overlap(boxes.data[:, i], boxes.data[:, j]) > threshold
    return i[above], j[above]


def _neighbours(boxes: _Sorted) -> NDArray:
    """How many of those that follow a box are within its reach."""
    last = np.searchsorted(boxes.place, boxes.reach, side="right")
    return (last - np.arange(1, len(last) + 1)).astype(np.int32)


def _is_spread(count: NDArray) -> bool:
    """Whether no box has so many neighbours that windows would cost less."""
    return int(count.max(initial=0)) * (_STEP + len(count)) <= _WINDOW * len(count)


def _pairs(a: _Sorted, b: _Sorted, threshold: float) -> tuple[NDArray, NDArray]:
    """Indices of pairs of `a` and `b` that overlap by more than the threshold, where b starts no further left."""
    low = np.searchsorted(b.place, a.place, side="left")
    high = np.searchsorted(b.place, a.reach, side="right")
    pairs: list[tuple[NDArray, NDArray]] = []
    starts = np.arange(0, len(low), _ROWS)
    for start, begin, end in zip(
        starts.tolist(), low[starts].tolist(), np.maximum.reduceat(high, starts).tolist(), strict=True
    ):
        rows, columns = slice(start, start + _ROWS), slice(begin, end)
        near = b.data[1, columns] <= a.depth[rows, None]
        near &= a.data[1, rows, None] <= b.depth[columns]
        i, j = np.divmod(np.flatnonzero(near), max(1, end - begin))
        pairs.append((i + start, j + begin))
    i, j = (np.concatenate(numbers) for numbers in zip(*pairs, strict=True))
    near = (j < high[i]) & (j >= low[i])
    i, j = i[near], j[near]
    above = _overlap(a.data[:, i], b.data[:, j]) > threshold
    return i[above], j[above]


def _settle(better: NDArray, worse: NDArray, count: int) -> NDArray:
    """Which of `count` boxes survive, given the pairs of a better box and the one that it suppresses if kept.

    The greedy result is the only fixed point of "kept unless a better box that overlaps it is kept", and each sweep
    makes at least one more box final.
    """
    keep = np.ones(count, dtype=bool)
    while True:
        again = np.ones(count, dtype=bool)
        again[worse[keep[better]]] = False
        if (again == keep).all():
            return keep
        keep = again


def _overlap(a: NDArray, b: NDArray) -> NDArray:
    """The IoU of each box with its partner, in the order of arithmetic of torchvision's kernel."""
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    intersection = width.clip(min=0) * height.clip(min=0)
    return intersection / (a[4] + b[4] - intersection)
