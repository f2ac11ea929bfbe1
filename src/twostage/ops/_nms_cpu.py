"""NMS on the CPU: one long list of boxes, sorted by image, group and score, worked off in blocks.

A block settles itself, then its kept boxes thin out the rest of the group; small groups share a block. All in numpy,
whose calls cost a third of torch's, on tiles that stay in the cache.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.ops.boxes import precise

_BLOCK = 128
_TILE = 32768  # pairs: three float32 buffers of it fit the second-level cache of common CPUs


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, iou: float, top: int, candidates: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU kernel of `twostage::nms`."""
    n = len(scores)
    index, kept = torch.zeros(n, top, dtype=torch.int64), torch.zeros(n, top, dtype=torch.bool)
    image, box, overflow = _ranked(scores, valid, candidates)
    if len(image):
        key = image if groups is None else _keys(image, groups.numpy()[image, box])
        order = np.argsort(key, kind="stable")
        corners = precise(boxes).numpy()[image[order], box[order]]
        with np.errstate(all="ignore"):  # boxes without area divide 0 by 0, which is no overlap
            survives = np.empty(len(image), dtype=bool)
            survives[order] = _greedy(corners, _ends(key[order]), exact_threshold(iou, corners.dtype))
        image, box = image[survives], box[survives]
        place = np.arange(len(image)) - np.searchsorted(image, image)
        fits = place < top
        index.numpy()[image[fits], place[fits]] = box[fits]
        kept.numpy()[image[fits], place[fits]] = True
    return index, kept, overflow


def exact_threshold(iou: float, dtype: np.dtype) -> float:
    """The largest number of the dtype that is not above `iou`: comparing with it is comparing with `iou` in float64."""
    near = dtype.type(iou)
    return float(near if float(near) <= iou else np.nextafter(near, dtype.type(-np.inf)))


def _ranked(scores: Tensor, valid: Tensor, candidates: int | None) -> tuple[NDArray, NDArray, Tensor]:
    """Image and box number of the candidates, by image and then by descending score; and who has too many."""
    order = scores.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    taken = valid.gather(1, order)
    count = taken.cumsum(1, dtype=torch.int32)
    overflow = torch.zeros(len(scores), dtype=torch.bool)
    if candidates is not None:
        taken &= count <= candidates
        overflow = valid.sum(1) > candidates
    image, rank = np.nonzero(taken.numpy())
    return image, order.numpy()[image, rank], overflow


def _keys(image: NDArray, group: NDArray) -> NDArray:
    """One integer for each image and group, images first; short where it can be, for numpy sorts those by radix."""
    lowest, highest = int(group.min()), int(group.max())
    span = highest - lowest + 1
    key = image * span + (group.astype(np.int64) - lowest)
    return key.astype(np.uint16) if (int(image[-1]) + 1) * span < 2**16 else key


def _ends(key: NDArray) -> NDArray:
    """For each entry of a sorted list, where its run of equal keys ends."""
    edges = np.flatnonzero(key[1:] != key[:-1]) + 1
    edges = np.concatenate([[0], edges, [len(key)]])
    return np.repeat(edges[1:], np.diff(edges))


def _greedy(corners: NDArray, ends: NDArray, threshold: float) -> NDArray:
    """Which boxes survive, given in order of group and rank with the end of each one's group."""
    x1, y1, x2, y2 = corners.T
    data = np.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])
    number = np.arange(len(corners))
    survives = np.zeros(len(corners), dtype=bool)
    buffers = np.empty((3, max(_TILE, _BLOCK * _BLOCK)), dtype=data.dtype)
    later = np.triu(np.ones((_BLOCK, _BLOCK), dtype=bool), 1)
    start = 0
    while start < len(corners):
        stop = min(start + _BLOCK, len(corners))
        block, end = data[:, start:stop], ends[start:stop]
        suppresses = _overlap(block, block, buffers, threshold)
        suppresses &= later[: len(end), : len(end)]
        if end[0] != end[-1]:
            suppresses &= end[:, None] == end
        keep = _settle(suppresses)
        survives[number[start:stop][keep]] = True
        last = int(end[-1])
        if last > stop:
            left = stop + _untouched(block[:, keep & (end == last)], data[:, stop:last], buffers, threshold)
            # The rest of the group closes up to its end, where the next group begins.
            stop = last - len(left)
            data[:, stop:last] = data[:, left]
            number[stop:last] = number[left]
        start = stop
    return survives


def _settle(suppresses: NDArray) -> NDArray:
    """Which boxes of a block survive, given who would suppress whom, always a later one.

    The greedy result is the only fixed point, and each sweep makes at least one more box final.
    """
    keep: NDArray = ~np.any(suppresses, axis=0)
    while True:
        again: NDArray = ~np.any(suppresses[keep], axis=0)
        if np.array_equal(again, keep):
            return keep
        keep = again


def _untouched(kept: NDArray, rest: NDArray, buffers: NDArray, threshold: float) -> NDArray:
    """Positions in `rest` of the boxes that none of the kept ones suppresses."""
    kept = np.ascontiguousarray(kept)
    size = rest.shape[1]
    touched = np.zeros(size, dtype=bool)
    step = max(_TILE // max(kept.shape[1], 1), 1)
    for start in range(0, size if kept.shape[1] else 0, step):
        part = rest[:, start : start + step]
        _overlap(kept, part, buffers, threshold).any(axis=0, out=touched[start : start + step])
    return np.flatnonzero(~touched)


def _overlap(a: NDArray, b: NDArray, buffers: NDArray, threshold: float) -> NDArray:
    """Whether the IoU of each pair is above the threshold, in the order of arithmetic of torchvision's kernel."""
    shape = a.shape[1], b.shape[1]
    width, height, scratch = (buffer[: shape[0] * shape[1]].reshape(shape) for buffer in buffers)
    ax1, ay1, ax2, ay2, a_area = a[:, :, None]
    bx1, by1, bx2, by2, b_area = b
    np.minimum(ax2, bx2, out=width)
    np.maximum(ax1, bx1, out=scratch)
    np.subtract(width, scratch, out=width)
    np.maximum(width, 0, out=width)
    np.minimum(ay2, by2, out=height)
    np.maximum(ay1, by1, out=scratch)
    np.subtract(height, scratch, out=height)
    np.maximum(height, 0, out=height)
    intersection = np.multiply(width, height, out=width)
    union = np.add(a_area, b_area, out=height)
    np.subtract(union, intersection, out=union)
    ratio: NDArray = np.divide(intersection, union, out=scratch)
    above: NDArray = np.greater(ratio, threshold)
    return above
