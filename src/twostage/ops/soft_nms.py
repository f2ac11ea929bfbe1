"""Soft-NMS: overlapped boxes lose score instead of being dropped (Bodla et al. 2017, figure 2).

Letters: n images, m boxes of each, padded; `top` results of each, padded. The operator is `twostage::soft_nms`: a CPU
kernel that ends when no score is left, and for all other devices one of fixed shapes: in each of `top` rounds the best
box of every image decays what it overlaps.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.ops.accelerator import soft_nms as _accelerator
from twostage.ops.cpu import soft_nms as _cpu


class SoftKept(NamedTuple):
    """The boxes in order of their decayed scores, in float32; padded with index 0, score 0 and `valid` False."""

    index: Int[Tensor, "n top"]  # type: ignore[assignment]
    scores: Float[Tensor, "n top"]
    valid: Bool[Tensor, "n top"]


def soft_nms(
    boxes: Float[Tensor, "n m 4"],
    scores: Float[Tensor, "n m"],
    groups: Int[Tensor, "n m"] | None,
    valid: Bool[Tensor, "n m"],
    *,
    method: Literal["linear", "gaussian"],
    top: int,
    iou: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
) -> SoftKept:
    """The `top` best boxes of each image after decay; boxes whose score falls below `min_score` are dropped.

    A box taken multiplies the scores of the others of its group by `1 - IoU` where that exceeds `iou` (linear, equation
    2), or by `exp(-IoU² / sigma)` (gaussian, equation 3). Only `valid` boxes take part; of equal scores the lower index
    goes first. A box that is NaN or has a score of NaN takes no part. Raises ValueError for another method.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"unknown soft-NMS method {method!r}; known: linear, gaussian")
    valid = valid & ~scores.isnan() & ~boxes.isnan().any(dim=2)
    arguments = (boxes.detach(), scores.detach(), groups, valid, method == "gaussian", top, iou, sigma, min_score)
    return SoftKept(*torch.ops.twostage.soft_nms(*arguments))


def _fake(
    boxes: Tensor, scores: Tensor, groups: Any, valid: Tensor, gaussian: bool, top: int | torch.SymInt, *_: float
) -> tuple[Tensor, Tensor, Tensor]:
    shape = scores.shape[0], top
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return (
        scores.new_empty(shape, dtype=torch.int64),
        scores.new_empty(shape, dtype=dtype),
        scores.new_empty(shape, dtype=torch.bool),
    )


torch.library.define(
    "twostage::soft_nms",
    "(Tensor boxes, Tensor scores, Tensor? groups, Tensor valid, bool gaussian, SymInt top, float iou, float sigma,"
    " float min_score) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("twostage::soft_nms", "cpu", _cpu.soft_nms)
torch.library.impl("twostage::soft_nms", "default", _accelerator.soft_nms)
torch.library.register_fake("twostage::soft_nms", _fake)
