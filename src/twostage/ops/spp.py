"""Spatial pyramid pooling of regions of a feature map (SPPnet, He et al. 2014).

Letters: n images, p boxes of each, padded, c channels. A pyramid level of b bins has b x b of them; the results of all
levels stand one after another in a flat vector.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from twostage.ops.boxes import precise
from twostage.ops.max_bins import max_bins

DETECTION = (6, 3, 2, 1)
"""50 bins: the pyramid of the detection experiments (section 4.1)."""


def spp(
    features: Float[Tensor, "n c h w"],
    boxes: Float[Tensor, "n p 4"],
    *,
    stride: int | float = 16,
    pyramid: Sequence[int] = DETECTION,
    max_cells: tuple[int, int] | None = None,
) -> Float[Tensor, "n p d"]:
    """The maximum of every bin of every level, d = c * sum(b²), each level as [c, b, b].

    Along an axis of k cells bin i of b is [floor(i k / b), ceil((i + 1) k / b)) (section 4.1), so that no bin is empty.
    A box covers the cells whose receptive fields are centred inside it, from floor(x1 / stride) + 1 to
    ceil(x2 / stride) - 1 (appendix A), at least one. `max_cells` limits the rows and columns of a bin that devices
    other than the CPU look at; by default it holds all bins.
    """
    h, w = features.shape[2:]
    x1, y1, x2, y2 = precise(boxes.detach()).unbind(-1)
    rows, columns = _cells(y1, y2, stride, h), _cells(x1, x2, stride, w)
    levels = []
    for bins in pyramid:
        most = max_cells or (min(h, -(-h // bins) + 1), min(w, -(-w // bins) + 1))
        level = max_bins(features, _bins(rows, bins), _bins(columns, bins), most=most)
        levels.append(level.flatten(2))
    return torch.cat(levels, dim=-1)


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


def _bins(cells: Int[Tensor, "n p 2"], bins: int) -> Int[Tensor, "n p b 2"]:
    """Where the bins start and end along one axis."""
    first, end = cells[..., :1], cells[..., 1:]
    size, number = end - first, torch.arange(bins, dtype=torch.int32, device=cells.device)
    starts = first + torch.div(number * size, bins, rounding_mode="floor")
    ends = first + torch.div((number + 1) * size + bins - 1, bins, rounding_mode="floor")
    return torch.stack([starts, ends], dim=-1)
