"""The pyramid level that a box is pooled from (FPN, section 4.2, equation 1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from twostage.ops.boxes import area


def assign_levels(
    boxes: Float[Tensor, "*n 4"], strides: tuple[int, ...], *, canonical_size: float = 224.0, eps: float = 1e-6
) -> Int[Tensor, "*n"]:
    """Index into `strides` for each box: floor(4 + log2(sqrt(area) / canonical_size) + eps), clamped to those levels.

    Level 4 has stride 16; strides double. `eps` is torchvision's and mmdetection's; detectron2 adds 1e-8 in the log.
    """
    first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    level = torch.floor(4 + torch.log2(area(boxes).sqrt() / canonical_size) + eps)
    return level.clamp(first, last).to(torch.int64) - first
