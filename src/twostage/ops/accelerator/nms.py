"""NMS with fixed shapes: every shape and every count follows from the arguments, and the host never waits.

Boxes in order of score are processed in blocks; there is one block unless memory is short. Inside a block the greedy
result is the fixed point of "kept unless a kept better box suppresses it". A constant number of sweeps finds it unless
a suppression chain is longer, which is reported. A sweep multiplies a vector by the matrix of which box suppresses
which: two GPU kernels.
"""

import numpy as np
import torch
from torch import Tensor

from twostage.ops.boxes import precise
from twostage.ops.cpu.nms import exact_threshold

_PAIRS = 1 << 26  # at most this many pairs at once, over all images: 256 MB in float32
_SWEEPS = 24


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, iou: float, top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of `twostage::nms` for all devices but the CPU."""
    n, m = scores.shape
    # A valid score of -inf still sorts before the padding.
    ranked = torch.where(valid, scores.clamp(min=torch.finfo(scores.dtype).min), -torch.inf)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    alive = valid.gather(1, order)
    boxes = precise(boxes).gather(1, order[..., None].expand(-1, -1, 4))
    groups = None if groups is None else groups.gather(1, order)
    overflow = torch.zeros(n, dtype=torch.bool, device=valid.device)
    block = max(64, _PAIRS // max(n * m, 1))
    for start in range(0, m, block):
        stop = min(start + block, m)
        suppresses = _overlap(boxes[:, start:stop], boxes[:, start:], iou)
        if groups is not None:
            suppresses &= groups[:, start:stop, None] == groups[:, None, start:]
        size = stop - start
        matrix = suppresses.to(torch.bfloat16 if boxes.device.type == "cuda" else torch.float32)
        matrix *= alive[:, start:stop, None]
        keep, settled = _settle(matrix[:, :, :size].triu(1), alive[:, start:stop])
        overflow |= ~settled
        suppressed = torch.bmm(keep[:, None].to(matrix.dtype), matrix[:, :, size:]).squeeze(1) > 0
        alive = torch.cat([alive[:, :start], keep, alive[:, stop:] & ~suppressed], dim=1)
    return *_pad(order, alive, top), overflow


def _settle(suppresses: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Which boxes of a block survive, and per image whether that is final; boxes not alive suppress none."""
    ones = suppresses.new_ones(len(alive), 1, alive.shape[1])
    keep = before = ones
    for _ in range(min(_SWEEPS, alive.shape[1] + 1)):
        before, keep = keep, torch.baddbmm(ones, keep, suppresses, alpha=-1).relu_()
    return alive & (keep.squeeze(1) > 0), (before == keep).all(2).squeeze(1)


def _overlap(a: Tensor, b: Tensor, iou: float) -> Tensor:
    """Whether the IoU of each pair is above the threshold, in torchvision's order of arithmetic."""
    ax1, ay1, ax2, ay2 = a.unsqueeze(2).unbind(-1)
    bx1, by1, bx2, by2 = b.unsqueeze(1).unbind(-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width.mul_(height)
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)).sub_(intersection)
    dtype = np.dtype(np.float64 if a.dtype == torch.float64 else np.float32)
    return intersection.div_(union) > exact_threshold(iou, dtype)


def _pad(order: Tensor, kept: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The first `top` kept entries of each row, and which of them are valid."""
    place = kept.cumsum(1).sub_(1).clamp_(max=top)
    place = torch.where(kept, place, top)  # the last column takes the rest and is cut off
    index = order.new_zeros(len(order), top + 1).scatter_(1, place, order)[:, :top]
    return index, torch.arange(top, device=order.device) < kept.sum(1, keepdim=True)
