"""Soft-NMS on the CPU: one box after the other, which decays those of its own group; all in numpy, whose calls cost a
third of torch's. It ends when no score is left that counts."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.ops.boxes import area, precise


class _Group(NamedTuple):
    """The boxes of one level or class."""

    members: NDArray  # [k] of the image's boxes
    corners: NDArray  # [4, k]
    area: NDArray  # [k]

    def overlap(self, box: NDArray, size: np.floating[Any]) -> NDArray:
        """IoU with one box, as `ops.boxes.iou` computes it."""
        x1, y1, x2, y2 = self.corners
        width = np.maximum(np.minimum(x2, box[2]) - np.maximum(x1, box[0]), 0)
        height = np.maximum(np.minimum(y2, box[3]) - np.maximum(y1, box[1]), 0)
        intersection = width * height
        return intersection / np.maximum(self.area + size - intersection, np.float32(1e-30))


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor,
    gaussian: bool,
    top: int,
    iou: float,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU kernel of `twostage::soft_nms`."""
    boxes, scores = precise(boxes), precise(scores)
    n, m = scores.shape
    waiting = scores.masked_fill(~valid, -torch.inf).numpy()
    index, best = np.zeros((n, top), dtype=np.int64), np.zeros((n, top), dtype=waiting.dtype)
    kept = np.zeros((n, top), dtype=bool)
    sizes, floor = area(boxes).numpy(), waiting.dtype.type(min_score)
    with np.errstate(all="ignore"):  # infinite boxes
        for image in range(n):
            score, corners, size = waiting[image], boxes[image].numpy(), sizes[image]
            label = np.zeros(m, dtype=np.int64) if groups is None else groups[image].numpy()
            of_label: dict[int, _Group] = {}
            for turn in range(min(top, m)):
                taken = int(score.argmax())
                if not score[taken] >= floor:
                    break
                index[image, turn], best[image, turn], kept[image, turn] = taken, score[taken], True
                score[taken] = -np.inf
                own = int(label[taken])
                if own not in of_label:
                    members = np.flatnonzero((label == own) & (score > -np.inf))
                    of_label[own] = _Group(members, np.ascontiguousarray(corners[members].T), size[members])
                group = of_label[own]
                overlap = group.overlap(corners[taken], size[taken])
                decay = np.exp(overlap * overlap / -sigma) if gaussian else np.where(overlap > iou, 1 - overlap, 1)
                left = score[group.members]
                # Where it is taken: -inf times a decay of 0 would be NaN.
                score[group.members] = np.multiply(left, decay, out=left, where=left > -np.inf)
    return torch.from_numpy(index), torch.from_numpy(best), torch.from_numpy(kept)
