"""RoIAlign with fixed shapes: one bag of rows over the table of all levels, and the host never waits."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from twostage.ops import roi_sampling
from twostage.ops.boxes import precise
from twostage.ops.roi_sampling import Grid, Reads, Regions

_ALL = slice(None)
_BAGS = ("cpu", "cuda")  # devices whose `embedding_bag` takes weights in every version of torch


def forward(
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    *settings: Any,
) -> Tensor:
    """The kernel of `twostage::roi_align` for all devices but the CPU."""
    shapes = [(feature.shape[2], feature.shape[3]) for feature in features]
    grid = Grid(*settings)
    _, reads, _ = _reads(boxes, levels, shapes, grid)
    tables = _tables(features)
    rows, weight = (roi_sampling.by_bin(entries) for entries in (reads.entries(_ALL), reads.weights(_ALL)))
    bag = _bag if tables.device.type in _BAGS else _bag_by_cell
    return bag(rows, tables, weight).view(*levels.shape, *grid.size, tables.shape[1])


def features_gradient(
    gradient: Tensor,
    shapes: Sequence[int],
    boxes: Tensor,
    levels: Tensor,
    *settings: Any,
) -> list[Tensor]:
    """The kernel of `twostage::roi_align_features_gradient` for all devices but the CPU."""
    n, channels = len(levels), gradient.shape[-1]
    maps = list(zip(shapes[::2], shapes[1::2], strict=True))
    totals = [n * height * width for height, width in maps]
    _, reads, _ = _reads(boxes, levels, maps, Grid(*settings))
    rows, weight = (roi_sampling.by_bin(entries) for entries in (reads.entries(_ALL), reads.weights(_ALL)))
    bag = _transposed_bag if gradient.device.type in _BAGS else _transposed_bag_by_cell
    cells = bag(rows, gradient.reshape(-1, channels), weight, sum(totals))
    # Cloned: what an operator returns must not share memory.
    return [
        part.view(n, height, width, channels).permute(0, 3, 1, 2).clone()
        for part, (height, width) in zip(torch.split(cells, totals), maps, strict=True)
    ]


def boxes_gradient(
    gradient: Tensor,
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    *settings: Any,
) -> Tensor:
    """The kernel of `twostage::roi_align_boxes_gradient` for all devices but the CPU."""
    shapes = [(feature.shape[2], feature.shape[3]) for feature in features]
    grid = Grid(*settings)
    regions, reads, samples = _reads(boxes, levels, shapes, grid)
    tables = _tables(features)
    of_bins = precise(gradient.reshape(levels.numel(), *grid.size, -1)).permute(1, 2, 0, 3)  # [by, bx, r, c]
    # One cell of every bin after the other: all at once would take the memory of the result for each cell.
    rows = reads.entries(_ALL)
    each = [(tables[cell].to(of_bins.dtype) * of_bins).sum(-1) for cell in rows.flatten(2, 3).unbind(2)]
    slopes = torch.stack(each, dim=2).view(rows.shape).to(precise(boxes).dtype)
    return roi_sampling.boxes_gradient(regions, reads, samples, slopes, aligned=grid.aligned).view(boxes.shape)


def _tables(features: Sequence[Tensor]) -> Tensor:
    """The maps of all levels as rows of channels."""
    return torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]) for feature in features])


def _bag(rows: Tensor, table: Tensor, weight: Tensor) -> Tensor:
    """[bins, c]: the weighted sum of the rows of each bin."""
    return embedding_bag(rows, table, mode="sum", per_sample_weights=weight.to(table.dtype))


def _transposed_bag(rows: Tensor, of_bins: Tensor, weight: Tensor, total: int) -> Tensor:
    """[total, c]: for each row the weighted sum of the bins that read it. Sorted, and so deterministic."""
    ordered, order = rows.flatten().sort(stable=True)
    number = torch.arange(total, dtype=rows.dtype, device=rows.device)
    return embedding_bag(
        torch.div(order, rows.shape[1], rounding_mode="floor").int(),
        of_bins,
        torch.searchsorted(ordered, number, out_int32=True),
        mode="sum",
        per_sample_weights=weight.flatten()[order].to(of_bins.dtype),
    )


def _bag_by_cell(rows: Tensor, table: Tensor, weight: Tensor) -> Tensor:
    """`_bag` for devices without `embedding_bag`, one cell of all bins after the other."""
    total = precise(table.new_zeros(len(rows), table.shape[1]))
    for row, share in zip(rows.unbind(1), weight.unbind(1), strict=True):
        total += table[row] * share[:, None]
    return total.to(table.dtype)


def _transposed_bag_by_cell(rows: Tensor, of_bins: Tensor, weight: Tensor, total: int) -> Tensor:
    """`_transposed_bag` for devices without `embedding_bag`, one cell of all bins after the other."""
    cells = precise(of_bins.new_zeros(total, of_bins.shape[1]))
    for row, share in zip(rows.unbind(1), weight.unbind(1), strict=True):
        cells.index_add_(0, row, (of_bins * share[:, None]).to(cells.dtype))
    return cells.to(of_bins.dtype)


def _reads(
    boxes: Tensor,
    levels: Tensor,
    shapes: Sequence[tuple[int, int]],
    grid: Grid,
) -> tuple[Regions, Reads, tuple[int, int]]:
    """Regions on the table of all levels, what they read, and the largest number of samples along y and x."""
    samples = grid.ratio or grid.max_samples
    if samples is None:
        raise ValueError("roi_align with sampling_ratio=0 needs max_samples on devices other than the CPU")
    firsts = list(accumulate((len(levels) * height * width for height, width in shapes[:-1]), initial=0))
    regions = roi_sampling.locate(boxes, levels, shapes, grid, firsts)
    both = (samples, samples)
    return regions, roi_sampling.read(regions, grid.size, both, (2 * samples, 2 * samples)), both
