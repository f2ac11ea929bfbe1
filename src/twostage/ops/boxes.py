"""What can be said of boxes alone: area, overlap, clipping, other layouts.

Letters: n and m boxes, `*b` any leading batch dimensions. Boxes are xyxy, absolute pixels, half-open: width = x2 - x1.
Results are float32 at least: bf16 has 8 bits of mantissa, whole pixels end at 256.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Layout = Literal["xyxy", "xywh", "cxcywh", "xyxyn"]


def precise(x: Shaped[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The same numbers in float32, or in float64 where they are already."""
    return x if x.dtype == torch.float64 else x.float()


def gather_boxes(boxes: Float[Tensor, "n p 4"], index: Int[Tensor, "n s"]) -> Float[Tensor, "n s 4"]:
    """The boxes at these positions of each image."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def area(boxes: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b"]:
    """Width times height in square pixels; 0 for inverted boxes."""
    x1, y1, x2, y2 = precise(boxes).unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def _overlaps(
    a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]
) -> tuple[Float[Tensor, "*b n m"], Float[Tensor, "*b n m"]]:
    """Intersection and union of all pairs, in square pixels."""
    # One coordinate at a time: half the memory of [n, m, 2] temporaries, and no strided reads.
    ax1, ay1, ax2, ay2 = precise(a).unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = precise(b).unsqueeze(-3).unbind(-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width * height
    union = area(a).unsqueeze(-1) + area(b).unsqueeze(-2) - intersection
    return intersection, union


def _ratio(part: Float[Tensor, "*b"], whole: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """`part / whole`, and 0 where both are 0, with a finite gradient."""
    return part / whole.clamp(min=1e-30)


def iou(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Intersection over union of all pairs, in [0, 1]; 0 where both boxes have no area."""
    return _ratio(*_overlaps(a, b))


def giou(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Generalised IoU of all pairs, in [-1, 1]: IoU less the empty share of the smallest box around both.

    Rezatofighi et al. 2019, algorithm 1. Where that box has no area either the value is 0.
    """
    intersection, union = _overlaps(a, b)
    x1, y1, x2, y2 = precise(a).unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = precise(b).unsqueeze(-3).unbind(-1)
    width = torch.maximum(x2, bx2) - torch.minimum(x1, bx1)
    height = torch.maximum(y2, by2) - torch.minimum(y1, by1)
    hull = width.clamp(min=0) * height.clamp(min=0)
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def clip(boxes: Float[Tensor, "*b n 4"], size: Shaped[Tensor, "*b 2"]) -> Float[Tensor, "*b n 4"]:
    """The part of each box inside its image; `size` is each image's (height, width). Boxes keep their dtype.

    A box wholly outside becomes one without area on the border.
    """
    limit = size.flip(-1).to(boxes.dtype).repeat(*[1] * (size.ndim - 1), 2).unsqueeze(-2)
    return torch.minimum(boxes.clamp(min=0), limit)


def convert(
    boxes: Float[Tensor, "*b n 4"], source: Layout, to: Layout, size: Shaped[Tensor, "*b 2"] | None = None
) -> Float[Tensor, "*b n 4"]:
    """Boxes in another layout: `xyxy`, `xywh` (top left corner), `cxcywh` (centre), `xyxyn` (xyxy by the image's size).

    `size`, each image's (height, width), is needed from and to `xyxyn` only. ValueError on an unknown layout or where
    the size is missing.
    """
    for name in (source, to):
        if name not in get_args(Layout):
            raise ValueError(f"unknown box layout {name!r}; known: {', '.join(get_args(Layout))}")
        if name == "xyxyn" and size is None:
            raise ValueError("boxes relative to the image (xyxyn) need `size`, each image's (height, width)")
    if source == to:
        return boxes
    return _from_xyxy(_to_xyxy(precise(boxes), source, size), to, size)


def _to_xyxy(boxes: Float[Tensor, "*b n 4"], source: Layout, size: Tensor | None) -> Float[Tensor, "*b n 4"]:
    first, second = boxes[..., :2], boxes[..., 2:]
    if source == "xywh":
        return torch.cat([first, first + second], dim=-1)
    if source == "cxcywh":
        return torch.cat([first - 0.5 * second, first + 0.5 * second], dim=-1)
    if source == "xyxyn" and size is not None:
        scale = size.flip(-1).unsqueeze(-2)
        return torch.cat([first * scale, second * scale], dim=-1)
    return boxes


def _from_xyxy(boxes: Float[Tensor, "*b n 4"], to: Layout, size: Tensor | None) -> Float[Tensor, "*b n 4"]:
    first, second = boxes[..., :2], boxes[..., 2:]
    if to == "xywh":
        return torch.cat([first, second - first], dim=-1)
    if to == "cxcywh":
        return torch.cat([0.5 * (first + second), second - first], dim=-1)
    if to == "xyxyn" and size is not None:
        scale = size.flip(-1).unsqueeze(-2)
        return torch.cat([first / scale, second / scale], dim=-1)
    return boxes
