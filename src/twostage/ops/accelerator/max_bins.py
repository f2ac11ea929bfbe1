"""The maximum over bins with fixed shapes: one cell of all bins after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def forward(feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> Tensor:
    """The kernel of `twostage::max_bins` for all devices but the CPU."""
    best, _ = _first_largest(feature, rows, columns, most)
    return best.view(*rows.shape[:3], columns.shape[2], feature.shape[1])


def backward(gradient: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> Tensor:
    """The kernel of `twostage::max_bins_gradient` for all devices but the CPU."""
    _, place = _first_largest(feature, rows, columns, most)
    n, c, h, w = feature.shape
    out = zero_cells(gradient, feature)
    add_to_cells(out, gradient, place.clamp(min=0), place >= 0)
    return out.to(gradient.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def zero_cells(gradient: Tensor, feature: Tensor) -> Tensor:
    """Zeros for all cells, in float32 at least: in bf16 a cell that many regions share would lose small summands."""
    n, c, h, w = feature.shape
    return gradient.new_zeros(n * h * w, c, dtype=torch.promote_types(gradient.dtype, torch.float32))


def add_to_cells(cells: Tensor, gradient: Tensor, place: Tensor, filled: Tensor) -> None:
    """Add the gradient of each value to its cell, except for empty bins."""
    c = cells.shape[1]
    cells.scatter_add_(0, place.view(-1, c), gradient.reshape(-1, c).to(cells.dtype) * filled.view(-1, c))


def _first_largest(feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[bins, c]: the largest value of each bin, and its row in the table of cells, or 0 and -1 for an empty bin."""
    n, c, h, w = feature.shape
    table = feature.permute(0, 2, 3, 1).reshape(-1, c)
    image = torch.arange(n, device=feature.device)[:, None, None, None] * (h * w)
    top, bottom = rows[:, :, :, None].unbind(-1)
    left, right = columns[:, :, None, :].unbind(-1)
    bins = rows.shape[0] * rows.shape[1] * rows.shape[2] * columns.shape[2]
    best = table.new_full((bins, c), -torch.inf)
    place = torch.full((bins, c), -1, dtype=torch.int64, device=feature.device)
    # One cell of all bins after the other, row by row: memory stays that of two results.
    for y in range(most[0]):
        for x in range(most[1]):
            inside = ((top + y < bottom) & (left + x < right)).reshape(-1, 1)
            cell = (image + (top + y).clamp(max=h - 1) * w + (left + x).clamp(max=w - 1)).reshape(-1)
            value = table[cell]
            better = inside & ((value > best) | (place < 0))
            best, place = torch.where(better, value, best), torch.where(better, cell[:, None], place)
    return best.masked_fill(place < 0, 0), place
