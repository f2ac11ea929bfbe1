"""Which cells of the feature maps the bins of a region read, and with which weights (Mask R-CNN, section 3).

RoIAlign averages bilinear samples. A bilinear weight is a product of one number per axis, and so is the sum of a bin's
weights on a cell: each axis is computed separately.

Letters: r regions, b bins along an axis, s samples of a bin along it, c cells a bin reads along it. Regions are the
last dimension: the others are too short for inner loops.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int32, Shaped
from torch import Tensor

from twostage.ops.boxes import precise


class Grid(NamedTuple):
    """How regions are sampled: the arguments of the operators after boxes and levels."""

    scales: Sequence[float]  # cells per pixel of each level
    size: Sequence[int]  # bins along y and x
    ratio: int  # samples along each axis of a bin; 0: about one a cell, `ceil(size / bins)`
    aligned: bool
    max_samples: int | None  # at most, with ratio 0


class Spans(NamedTuple):
    """Position and size of regions along one axis, in cells of their map."""

    low: Float[Tensor, " r"]
    size: Float[Tensor, " r"]
    extent: Float[Tensor, " r"]  # cells of the map
    samples: Float[Tensor, " r"]  # of each bin; 0 for none


class Regions(NamedTuple):
    """Position and size of regions on their maps."""

    y: Spans
    x: Spans
    level: Int[Tensor, " r"]
    first: Int32[Tensor, " r"]  # row of the table of maps that holds the map's cell 0, 0
    width: Int32[Tensor, " r"]  # of the map
    scale: Float[Tensor, " r"]

    def take(self, some: Tensor) -> "Regions":
        """The regions at these indices."""
        y, x = (Spans(*(values.index_select(0, some) for values in span)) for span in self[:2])
        return Regions(y, x, *(values.index_select(0, some) for values in self[2:]))


class Reads(NamedTuple):
    """Rows and columns that the bins read, and their weights; a bin reads all pairs of them."""

    rows: Int32[Tensor, "by cy r"]  # of the table of maps, at the start of a map row
    columns: Int32[Tensor, "bx cx r"]
    weight_y: Float[Tensor, "by cy r"]
    weight_x: Float[Tensor, "bx cx r"]

    def entries(self, part: slice) -> Int32[Tensor, "by bx cy cx p"]:
        """The rows of the table that the bins of a part of the regions read."""
        return self.rows[:, None, :, None, part] + self.columns[None, :, None, :, part]

    def weights(self, part: slice) -> Float[Tensor, "by bx cy cx p"]:
        """The weight of each entry in its bin."""
        return self.weight_y[:, None, :, None, part] * self.weight_x[None, :, None, :, part]


def locate(
    boxes: Float[Tensor, "n p 4"],
    levels: Int[Tensor, "n p"],
    shapes: Sequence[tuple[int, int]],
    grid: Grid,
    firsts: Sequence[int],
) -> Regions:
    """Boxes on the maps of their levels; each map holds n images and starts at its row of the table in `firsts`."""
    sides = precise(boxes).flatten(0, 1).unbind(1)
    level = levels.flatten().clamp(0, len(grid.scales) - 1)
    scale = _constants(grid.scales, sides[0]).index_select(0, level)
    height, width, area, first = (
        _constants(values, level.int()).index_select(0, level)
        for values in ([h for h, _ in shapes], [w for _, w in shapes], [h * w for h, w in shapes], firsts)
    )
    image = torch.arange(len(levels), dtype=torch.int32, device=level.device)
    first = first + image[:, None].expand(levels.shape).flatten() * area
    offset = 0.5 if grid.aligned else 0.0
    spans = []
    for start, end, extent, bins in (
        (sides[1], sides[3], height, grid.size[0]),
        (sides[0], sides[2], width, grid.size[1]),
    ):
        low = start * scale - offset
        length = (end * scale - offset) - low
        if not grid.aligned:
            length = length.clamp(min=1)
        samples = torch.full_like(length, grid.ratio)
        if not grid.ratio:
            samples = (length / bins).ceil().nan_to_num(nan=1, posinf=1).clamp(0, grid.max_samples)
        spans.append(Spans(low, length, extent.to(low.dtype), samples))
    return Regions(spans[0], spans[1], level, first, width, scale)


def cells_needed(span: Spans, bins: int) -> Float[Tensor, " r"]:
    """How many neighbouring cells hold all samples of a bin: at most two per sample, or the whole map."""
    between = span.size.nan_to_num().abs() / bins * (1 - 1 / span.samples.clamp(min=1))
    return (between.ceil() + 2).minimum(2 * span.samples).minimum(span.extent).clamp(min=2)


def read(regions: Regions, size: Sequence[int], samples: tuple[int, int], cells: tuple[int, int]) -> Reads:
    """Rows, columns and weights of all bins, with so many samples and cells along y and x; see `_along`."""
    y, weight_y = _along(regions.y, size[0], samples[0], cells[0])
    x, weight_x = _along(regions.x, size[1], samples[1], cells[1])
    return Reads(y * regions.width + regions.first, x, weight_y, weight_x)


def by_bin(entries: Shaped[Tensor, "by bx cy cx r"]) -> Shaped[Tensor, "bins cells"]:
    """The entries of each bin in one row, regions first, as `embedding_bag` takes them."""
    by, bx, cy, cx, r = entries.shape
    return entries.view(by * bx * cy * cx, r).t().contiguous().view(r * by * bx, cy * cx)


def boxes_gradient(
    regions: Regions,
    reads: Reads,
    samples: tuple[int, int],
    slopes: Float[Tensor, "by bx cy cx r"],
    *,
    aligned: bool,
) -> Float[Tensor, "r 4"]:
    """The gradient in the boxes from that in the weights of the rows of the bins."""
    low_y, size_y = _along_gradient(regions.y, samples[0], (slopes * reads.weight_x[None, :, None, :]).sum((1, 3)))
    low_x, size_x = _along_gradient(regions.x, samples[1], (slopes * reads.weight_y[:, None, :, None]).sum((0, 2)))
    if not aligned:  # sizes below one cell were clamped
        size_y, size_x = size_y * (regions.y.size > 1), size_x * (regions.x.size > 1)
    return torch.stack([low_x - size_x, low_y - size_y, size_x, size_y], dim=-1) * regions.scale[:, None]


def _along(span: Spans, bins: int, samples: int, cells: int) -> tuple[Int32[Tensor, "b c r"], Float[Tensor, "b c r"]]:
    """The cells that each bin reads along one axis, and their weights.

    With twice as many cells as samples each sample has its own two cells. With fewer, at least `cells_needed`, samples
    share cells: 2 x 2 samples less than one cell apart touch 9 cells, not 16.
    """
    place, share, _ = sample_places(span, bins, samples)
    first = place.floor()
    if cells == 2 * samples:
        beyond = place - first
        cell = torch.stack([first, first + 1], dim=2).flatten(1, 2)
        weight = torch.stack([(1 - beyond) * share, beyond * share], dim=2).flatten(1, 2)
    else:
        number = torch.arange(cells, dtype=place.dtype, device=place.device)
        cell = first.amin(dim=1, keepdim=True) + number[:, None]
        distance = place[:, :, None].sub(cell[:, None]).abs_()
        weight = distance.neg_().add_(1).clamp_(min=0).mul_(share[:, :, None]).sum(dim=1)
    # Beyond the last cell weights are 0; a NaN must reach the result and not the index.
    return cell.int().clamp_(min=0).minimum((span.extent - 1).int()), weight


def _along_gradient(
    span: Spans, samples: int, slopes: Float[Tensor, "b c r"]
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """The gradient in `low` and `size` from that in the weights along one axis."""
    bins, cells, _ = slopes.shape
    place, share, position = sample_places(span, bins, samples)
    if cells == 2 * samples:
        lower, upper = slopes[:, 0::2], slopes[:, 1::2]
    else:
        first = place.floor()
        at = (first - first.amin(dim=1, keepdim=True)).long()
        lower, upper = (slopes.gather(1, i.clamp(0, cells - 1)) for i in (at, at + 1))
    free = (place > 0) & (place < span.extent - 1)  # a sample clamped to the border does not move
    moved = (upper - lower) * share * free
    return moved.sum(dim=(0, 1)), (moved * position).sum(dim=(0, 1))


def sample_places(
    span: Spans, bins: int, samples: int
) -> tuple[Float[Tensor, "b s r"], Float[Tensor, "b s r"], Float[Tensor, "b s r"]]:
    """Positions of samples on the map, their shares in the mean of their bin, and their places in the region (0..1)."""
    low, size, extent, count = span
    number = torch.arange(bins, dtype=low.dtype, device=low.device)[:, None, None]
    sample = torch.arange(samples, dtype=low.dtype, device=low.device)[:, None] + 0.5
    some = count.clamp(min=1)
    step = size / bins
    # In torchvision's order of arithmetic, so that a sample on the border of the map falls on the same side.
    place = (low + number * step) + sample * step / some
    inside = (place >= -1) & (place <= extent) & (sample < count)
    return place.clamp(min=0).minimum(extent - 1), inside / some, (number + sample / some) / bins


def _constants(values: Sequence[int] | Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of the dtype and device of `like`, without a copy for which the host waits."""
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=like.dtype)
    return torch.stack([torch.full((), value, dtype=like.dtype, device=like.device) for value in values])
