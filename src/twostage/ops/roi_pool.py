"""RoIPool: the maximum of each of a region's bins, on coordinates rounded to cells (Fast R-CNN, section 2.1).

Letters: n images, p boxes of each, padded, c channels, sy x sx bins.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from twostage.ops.boxes import precise
from twostage.ops.max_bins import max_bins


def roi_pool(
    features: Float[Tensor, "n c h w"],
    boxes: Float[Tensor, "n p 4"],
    *,
    scale: float,
    output_size: int | tuple[int, int] = 7,
    max_cells: tuple[int, int] | None = None,
) -> Float[Tensor, "n p c sy sx"]:
    """RoIPool as in Fast R-CNN's Caffe layer and torchvision: a box covers whole cells, both ends included.

    `scale` is the map's cells per pixel. Bins overlap where the box does not divide evenly, and are 0 where they lie
    outside the map. `max_cells`, the most rows and columns of a bin that devices other than the CPU read, covers all
    bins of boxes inside the image by default. In memory the result is channels-last, [n, p, sy, sx, c].
    """
    size = [output_size, output_size] if isinstance(output_size, int) else list(output_size)
    out: Tensor = torch.ops.twostage.roi_pool(features, boxes, scale, size, max_cells and list(max_cells))
    return out


def _roi_pool(
    features: Tensor, boxes: Tensor, scale: float, size: Sequence[int], max_cells: Sequence[int] | None
) -> Tensor:
    (sy, sx), (h, w) = size, features.shape[2:]
    x1, y1, x2, y2 = precise(boxes.detach()).unbind(-1)
    rows, columns = cells_of_bins(y1, y2, scale, sy, h), cells_of_bins(x1, x2, scale, sx, w)
    # A box inside the image covers at most one cell more than the map has, and a bin one more than its size.
    most = max_cells or (min(h, -(-(h + 1) // sy) + 1), min(w, -(-(w + 1) // sx) + 1))
    return max_bins(features, rows, columns, most=(most[0], most[1]))


def cells_of_bins(
    start: Float[Tensor, "n p"], end: Float[Tensor, "n p"], scale: float, bins: int, extent: int
) -> Int[Tensor, "n p b 2"]:
    """Start and end along one axis of the bins of boxes rounded to cells, clipped to the map."""
    low, high = _round(start * scale), _round(end * scale)
    size = (high - low + 1).clamp(min=1) / bins
    number = torch.arange(bins, dtype=size.dtype, device=size.device)
    edges = torch.stack([(number * size[..., None]).floor(), ((number + 1) * size[..., None]).ceil()], dim=-1)
    return (edges + low[..., None, None]).nan_to_num(0).clamp(0, extent).int()


def _round(x: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """To the nearest integer, halves away from 0 as in C; torch rounds halves to even."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


# One node of an exported program, which runtimes have an operator for; everywhere else what it is made of.
torch.library.define(
    "twostage::roi_pool", "(Tensor features, Tensor boxes, float scale, int[] size, int[]? max_cells) -> Tensor"
)
torch.library.impl("twostage::roi_pool", "CompositeImplicitAutograd", _roi_pool)
