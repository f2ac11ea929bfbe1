"""Exact greedy non-maximum suppression of a whole batch in one call, per level or per class.

Letters: n images, m boxes of each, padded; `top` results of each, padded. The operator is `twostage::nms`: a CPU kernel
that branches on the data, and for all other devices one of fixed shapes, during which the host never waits.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.ops.accelerator import nms as _accelerator
from twostage.ops.cpu import nms as _cpu


class Kept(NamedTuple):
    """The boxes that NMS leaves, best first; padded with index 0 and `valid` False.

    `overflow` marks images whose result may be wrong: on accelerators a chain of suppression can be too long for the
    constant number of sweeps. Run such an image again on the CPU.
    """

    index: Int[Tensor, "n top"]  # type: ignore[assignment]
    valid: Bool[Tensor, "n top"]
    overflow: Bool[Tensor, " n"]


def nms(
    boxes: Float[Tensor, "n m 4"],
    scores: Float[Tensor, "n m"],
    groups: Int[Tensor, "n m"] | None,
    valid: Bool[Tensor, "n m"],
    *,
    iou: float,
    top: int,
) -> Kept:
    """The best `top` boxes of each image that overlap no better kept box of their group by more than `iou`.

    Only `valid` boxes take part. `groups` holds a level or class, any integers; None is one group. Equal scores: the
    lower index goes first. Same set and order as `torchvision.ops.nms` on each group. Boxes and scores must not be NaN.
    """
    return Kept(*torch.ops.twostage.nms(boxes.detach(), scores.detach(), groups, valid, iou, top))


def _fake(
    boxes: Tensor, scores: Tensor, groups: Any, valid: Tensor, iou: float, top: int | torch.SymInt
) -> tuple[Tensor, Tensor, Tensor]:
    n = scores.shape[0]
    return (
        scores.new_empty(n, top, dtype=torch.int64),
        scores.new_empty(n, top, dtype=torch.bool),
        scores.new_empty(n, dtype=torch.bool),
    )


torch.library.define(
    "twostage::nms",
    "(Tensor boxes, Tensor scores, Tensor? groups, Tensor valid, float iou, SymInt top) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("twostage::nms", "cpu", _cpu.nms)
torch.library.impl("twostage::nms", "default", _accelerator.nms)
torch.library.register_fake("twostage::nms", _fake)
