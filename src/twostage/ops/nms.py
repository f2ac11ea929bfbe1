"""Exact greedy non-maximum suppression of a whole batch in one call, per level or per class.

Letters: n images, m boxes of each, padded; `top` results of each, padded. The operator is `twostage::nms`: a CPU kernel
that may look at the data, and for every other device one of fixed shapes that never makes the host wait.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.ops import _nms_device
from twostage.ops.cpu import nms as _nms_cpu


class Kept(NamedTuple):
    """The boxes that NMS leaves, best first; padded with index 0 and `valid` False.

    `overflow` marks images whose result may be wrong: more valid boxes than `candidates`, or, away from the CPU, chains
    of suppression too long for the constant number of sweeps. Who sees it can run the image again on the CPU.
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
    candidates: int | None = None,
) -> Kept:
    """The best `top` boxes of each image that overlap no better kept box of their group by more than `iou`.

    Only `valid` boxes take part, at most the `candidates` best of an image. `groups` holds a level or class, any
    integers; None is one group. Equal scores: the lower index goes first. Same set and order as `torchvision.ops.nms`
    on each group. Boxes and scores must not be NaN.
    """
    return Kept(*torch.ops.twostage.nms(boxes.detach(), scores.detach(), groups, valid, iou, top, candidates))


def _fake(
    boxes: Tensor, scores: Tensor, groups: Any, valid: Tensor, iou: float, top: int | torch.SymInt, candidates: Any
) -> tuple[Tensor, Tensor, Tensor]:
    n = scores.shape[0]
    return (
        scores.new_empty(n, top, dtype=torch.int64),
        scores.new_empty(n, top, dtype=torch.bool),
        scores.new_empty(n, dtype=torch.bool),
    )


torch.library.define(
    "twostage::nms",
    "(Tensor boxes, Tensor scores, Tensor? groups, Tensor valid, float iou, SymInt top, SymInt? candidates)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("twostage::nms", "cpu", _nms_cpu.nms)
torch.library.impl("twostage::nms", "default", _nms_device.nms)
torch.library.register_fake("twostage::nms", _fake)
