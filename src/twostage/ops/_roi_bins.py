"""Which cells of which feature map the bins of a region read, and how much of each (Mask R-CNN, section 3).

RoIAlign averages bilinear samples. A bilinear weight is a product of one number for each axis, and so is the sum of a
bin's weights on a cell: each axis is worked out alone.

Letters: r regions, b bins along an axis, s samples of a bin along it, c cells a bin reads along it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from twostage.ops.boxes import precise


class Spans(NamedTuple):
    """Where regions lie along one axis, in cells of their map."""

    low: Float[Tensor, " r"]
    size: Float[Tensor, " r"]
    extent: Float[Tensor, " r"]  # cells of the map
    grid: Float[Tensor, " r"]  # samples of each bin; 0 for none

    def take(self, some: Tensor) -> Self:
        """The spans of some regions."""
        return type(self)(*(tensor[some] for tensor in self))


class Regions(NamedTuple):
    """Where regions lie on their maps."""

    y: Spans
    x: Spans
    level: Int[Tensor, " r"]
    first: Int32[Tensor, " r"]  # row of the table of maps that holds the map's cell 0, 0
    width: Int32[Tensor, " r"]  # of the map
    scale: Float[Tensor, " r"]

    def take(self, some: Tensor) -> Self:
        """Some of the regions."""
        return type(self)(self.y.take(some), self.x.take(some), *(tensor[some] for tensor in self[2:]))


class Reads(NamedTuple):
    """The rows that every bin reads, and the weights of the bins' rows and columns of cells."""

    rows: Int32[Tensor, "bins cells"]
    y: Float[Tensor, "r by cy"]
    x: Float[Tensor, "r bx cx"]

    def weight(self) -> Float[Tensor, "bins cells"]:
        """The weight of each row in its bin."""
        return (self.y[:, :, None, :, None] * self.x[:, None, :, None, :]).view(self.rows.shape)


def locate(
    boxes: Float[Tensor, "n p 4"],
    levels: Int[Tensor, "n p"],
    shapes: Sequence[tuple[int, int]],
    firsts: Sequence[int],
    scales: Sequence[float],
    *,
    size: Sequence[int],
    ratio: int,
    aligned: bool,
    max_samples: int | None,
) -> Regions:
    """Boxes on the maps of their levels; `firsts` are the rows at which the maps begin, each holding n images.

    `ratio` 0 takes about one sample a cell: `ceil(size / bins)`, at most `max_samples`.
    """
    boxes = precise(boxes).flatten(0, 1)
    level = levels.flatten().clamp(0, len(scales) - 1)
    scale = _constants(scales, boxes)[level]
    height, width, area, first = (
        _constants(values, levels.int())[level]
        for values in ([h for h, _ in shapes], [w for _, w in shapes], [h * w for h, w in shapes], firsts)
    )
    image = torch.arange(len(levels), dtype=torch.int32, device=boxes.device)
    first = first + image.repeat_interleave(levels.shape[1], output_size=len(level)) * area
    offset = 0.5 if aligned else 0.0
    axes = []
    for axis, extent in ((1, height), (0, width)):
        low = boxes[:, axis] * scale - offset
        length = (boxes[:, axis + 2] * scale - offset) - low
        if not aligned:
            length = length.clamp(min=1)
        grid = torch.full_like(length, ratio) if ratio else (length / size[1 - axis]).ceil().clamp(0, max_samples)
        axes.append(Spans(low, length, extent.to(low.dtype), grid))
    return Regions(axes[0], axes[1], level, first, width, scale)


def cells_needed(span: Spans, bins: int) -> Float[Tensor, " r"]:
    """How many neighbouring cells hold all samples of a bin: at most two a sample, or the whole map."""
    between = span.size.abs() / bins * (1 - 1 / span.grid.clamp(min=1))
    return (between.ceil() + 2).minimum(2 * span.grid).minimum(span.extent).clamp(min=2)


def read(regions: Regions, size: Sequence[int], samples: tuple[int, int], cells: tuple[int, int]) -> Reads:
    """What the bins of regions read, with so many samples and cells along y and x; see `_along`."""
    y, weight_y = _along(regions.y, size[0], samples[0], cells[0])
    x, weight_x = _along(regions.x, size[1], samples[1], cells[1])
    y = y * regions.width[:, None, None] + regions.first[:, None, None]
    rows = (y[:, :, None, :, None] + x[:, None, :, None, :]).view(-1, cells[0] * cells[1])
    return Reads(rows, weight_y, weight_x)


def boxes_gradient(
    regions: Regions, reads: Reads, samples: tuple[int, int], slopes: Float[Tensor, "bins cells"], *, aligned: bool
) -> Float[Tensor, "r 4"]:
    """The gradient in the boxes, given that in the weight of each row of each bin."""
    (_, by, cy), (_, bx, cx) = reads.y.shape, reads.x.shape
    slopes = slopes.view(-1, by, bx, cy, cx)
    low_y, size_y = _along_gradient(regions.y, samples[0], (slopes * reads.x[:, None, :, None, :]).sum((2, 4)))
    low_x, size_x = _along_gradient(regions.x, samples[1], (slopes * reads.y[:, :, None, :, None]).sum((1, 3)))
    if not aligned:  # sizes below a cell were raised to it
        size_y, size_x = size_y * (regions.y.size > 1), size_x * (regions.x.size > 1)
    return torch.stack([low_x - size_x, low_y - size_y, size_x, size_y], dim=-1) * regions.scale[:, None]


def _along(span: Spans, bins: int, samples: int, cells: int) -> tuple[Int32[Tensor, "r b c"], Float[Tensor, "r b c"]]:
    """The cells that each bin reads along one axis, and their weights.

    With `cells` twice the samples each sample brings its own two. With fewer, at least `cells_needed`, samples share them:
    2 x 2 samples touch 9 cells, not 16, while they stand less than a cell apart.
    """
    place, share, _ = _samples(span, bins, samples)
    first = place.floor()
    if cells == 2 * samples:
        beyond = place - first
        cell = torch.stack([first, first + 1], dim=-1).flatten(-2)
        weight = torch.stack([(1 - beyond) * share, beyond * share], dim=-1).flatten(-2)
    else:
        cell = first.amin(dim=-1, keepdim=True) + torch.arange(cells, device=place.device)
        distance = (place[..., None] - cell[..., None, :]).abs_()
        weight = distance.neg_().add_(1).clamp_(min=0).mul_(share[..., None]).sum(dim=-2)
    # Beyond the last cell weights are 0; a NaN must reach the result and not the address.
    limit = (span.extent - 1).int()[:, None, None]
    return cell.int().clamp_(min=0).minimum(limit), weight


def _along_gradient(
    span: Spans, samples: int, slopes: Float[Tensor, "r b c"]
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """The gradient in `low` and `size`, given that in the weights along one axis."""
    _, bins, cells = slopes.shape
    place, share, position = _samples(span, bins, samples)
    if cells == 2 * samples:
        pairs = slopes.unflatten(-1, (samples, 2))
        lower, upper = pairs[..., 0], pairs[..., 1]
    else:
        first = place.floor()
        at = (first - first.amin(dim=-1, keepdim=True)).long()
        lower, upper = (slopes.gather(-1, i.clamp(0, cells - 1)) for i in (at, at + 1))
    free = (place > 0) & (place < (span.extent - 1)[:, None, None])  # a sample held at the border does not move
    moved = (upper - lower) * share * free
    return moved.sum(dim=(1, 2)), (moved * position).sum(dim=(1, 2))


def _samples(
    span: Spans, bins: int, samples: int
) -> tuple[Float[Tensor, "r b s"], Float[Tensor, "r b s"], Float[Tensor, "r b s"]]:
    """Where samples stand on the map, the share each has in the mean of its bin, and its place in the region, in [0, 1]."""
    low, size, extent, grid = (tensor[:, None, None] for tensor in span)
    number = torch.arange(bins, device=low.device)[:, None]
    sample = torch.arange(samples, device=low.device) + 0.5
    some = grid.clamp(min=1)
    step = size / bins
    # In torchvision's order of arithmetic: a sample on the border of the map must fall on the same side.
    place = low + number * step + sample * step / some
    inside = (place >= -1) & (place <= extent) & (sample < grid)
    return place.clamp(min=0).minimum(extent - 1), inside / some, (number + sample / some) / bins


def _constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of the dtype and device of another, without a copy from the host that waits for the device."""
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=like.dtype)
    return torch.stack([torch.full((), value, dtype=like.dtype, device=like.device) for value in values])
