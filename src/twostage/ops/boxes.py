"""Functions of boxes alone: area, IoU, clipping.

Letters: n and m boxes, `*b` any leading batch dimensions. Boxes are xyxy, absolute pixels, half-open: width = x2 - x1.
Results are float32 at least: bf16 has 8 bits of mantissa, whole pixels end at 256.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def precise(x: Shaped[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The values in float32; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def gather_boxes(boxes: Float[Tensor, "n p 4"], index: Int[Tensor, "n s"]) -> Float[Tensor, "n s 4"]:
    """The boxes at these positions of each image."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def area(boxes: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b"]:
    """Width times height in square pixels; 0 for inverted boxes."""
    x1, y1, x2, y2 = precise(boxes).unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def iou(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Intersection over union of all pairs, in [0, 1]; 0 where both boxes have no area, with a finite gradient."""
    # One coordinate at a time: half the memory of [n, m, 2] temporaries, and no strided reads.
    ax1, ay1, ax2, ay2 = precise(a).unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = precise(b).unsqueeze(-3).unbind(-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width * height
    union = area(a).unsqueeze(-1) + area(b).unsqueeze(-2) - intersection
    return intersection / union.clamp(min=1e-30)


def clip(boxes: Float[Tensor, "*b n 4"], size: Shaped[Tensor, "*b 2"]) -> Float[Tensor, "*b n 4"]:
    """The part of each box inside its image; `size` is each image's (height, width). Boxes keep their dtype.

    A box entirely outside becomes a box without area on the border.
    """
    limit = size.flip(-1).to(boxes.dtype).repeat(*[1] * (size.ndim - 1), 2).unsqueeze(-2)
    return torch.minimum(boxes.clamp(min=0), limit)
