"""Soft-NMS for accelerators: in each of `top` rounds the best box of every image decays what it overlaps."""

import torch
from torch import Tensor

from twostage.ops.boxes import iou as pairwise_iou
from twostage.ops.boxes import precise


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
    """The kernel of `twostage::soft_nms` for devices other than the CPU."""
    (n, m), boxes = scores.shape, precise(boxes)
    score = precise(scores).masked_fill(~valid, -torch.inf)
    index, best = scores.new_zeros(n, top, dtype=torch.int64), score.new_full((n, top), -torch.inf)
    for turn in range(min(top, m)):
        taken = score.argmax(dim=1, keepdim=True)
        index[:, turn : turn + 1], best[:, turn : turn + 1] = taken, score.gather(1, taken)
        overlap = pairwise_iou(boxes.gather(1, taken[..., None].expand(-1, -1, 4)), boxes).squeeze(1)
        decay = torch.exp(overlap.square() / -sigma) if gaussian else torch.where(overlap > iou, 1 - overlap, 1.0)
        if groups is not None:
            decay = torch.where(groups == groups.gather(1, taken), decay, 1.0)
        # A dropped or taken box stays at -inf, because -inf times a decay of 0 would be NaN.
        score = torch.where(score > -torch.inf, score * decay, score).scatter(1, taken, -torch.inf)
    kept = best >= min_score
    return index.masked_fill(~kept, 0), best.masked_fill(~kept, 0), kept
