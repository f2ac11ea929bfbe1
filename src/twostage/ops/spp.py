"""Spatial pyramid pooling of regions of a feature map (SPPnet, He et al. 2014).

Letters: n images, p boxes of each, padded, c channels. A pyramid level of b bins has b x b of them; the results of all
levels are concatenated to a flat vector, each in the order row, column, channel, as fc6 takes regions here.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d

from twostage.ops.boxes import precise
from twostage.ops.max_bins import max_bins
from twostage.ops.roi_pool import roi_pool

DETECTION = (6, 3, 2, 1)
"""50 bins: the pyramid of the detection experiments (section 4.1)."""


def spp(
    features: Float[Tensor, "n c h w"],
    boxes: Float[Tensor, "n p 4"],
    *,
    stride: int | float = 16,
    pyramid: Sequence[int] = DETECTION,
    projection: Literal["centres", "rounded"] = "centres",
    max_cells: tuple[int, int] | None = None,
) -> Float[Tensor, "n p d"]:
    """The maximum of every bin of every level, d = c * sum(b²), each level as [b, b, c].

    Along an axis of k cells bin i of b is [floor(i k / b), ceil((i + 1) k / b)) (section 4.1), so that no bin is empty.
    By "centres" a box covers the cells whose receptive fields are centred inside it, from floor(x1 / stride) + 1 to
    ceil(x2 / stride) - 1 (appendix A), at least one; by "rounded" those of Fast R-CNN, and one level is then its
    RoIPool. `max_cells` limits the rows and columns of a bin that devices other than the CPU read; by default it
    covers all bins.
    """
    h, w = features.shape[2:]
    x1, y1, x2, y2 = precise(boxes.detach()).unbind(-1)
    levels: dict[int, Tensor] = {}
    for bins in sorted(pyramid, reverse=True):
        if projection == "rounded":
            levels[bins] = roi_pool(features, boxes, scale=1 / stride, output_size=bins, max_cells=max_cells)
            continue
        finer = [level for level in levels if level % bins == 0]
        if finer:
            # Each bin is exactly a block of finer bins: floor(m i k / (m b)) = floor(i k / b), the same for ceil.
            size = min(finer) // bins
            level = levels[min(finer)].flatten(0, 1)
            levels[bins] = max_pool2d(level, size).unflatten(0, boxes.shape[:2])
            continue
        rows, columns = cells_of_bins(y1, y2, stride, h, bins), cells_of_bins(x1, x2, stride, w, bins)
        most = max_cells or (min(h, -(-h // bins) + 1), min(w, -(-w // bins) + 1))
        levels[bins] = max_bins(features, rows, columns, most=most)
    return torch.cat([levels[bins].permute(0, 1, 3, 4, 2).flatten(2) for bins in pyramid], dim=-1)


def _cells(
    start: Float[Tensor, "n p"], end: Float[Tensor, "n p"], stride: int | float, extent: int
) -> Int[Tensor, "n p 2"]:
    """The cells of a box along one axis: the first, and the one after the last."""
    first, last = (start / stride).floor() + 1, (end / stride).ceil() - 1
    middle = ((start + end) / (2 * stride)).round()
    narrow = last < first
    first, last = torch.where(narrow, middle, first), torch.where(narrow, middle, last)
    cells = torch.stack([first, last], dim=-1).nan_to_num(0).clamp(0, extent - 1).int()
    return cells + torch.arange(2, dtype=torch.int32, device=cells.device)


def cells_of_bins(
    start: Float[Tensor, "n p"], end: Float[Tensor, "n p"], stride: int | float, extent: int, bins: int
) -> Int[Tensor, "n p b 2"]:
    """Start and end along one axis of the bins of boxes by "centres"."""
    cells = _cells(start, end, stride, extent)
    first, end = cells[..., :1], cells[..., 1:]
    size, number = end - first, torch.arange(bins, dtype=torch.int32, device=cells.device)
    starts = first + torch.div(number * size, bins, rounding_mode="floor")
    ends = first + torch.div((number + 1) * size + bins - 1, bins, rounding_mode="floor")
    return torch.stack([starts, ends], dim=-1)
