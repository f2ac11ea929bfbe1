"""The maximum over bins on the CPU: looked up in a table of all small rectangles, or computed region by region."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.ops.accelerator.max_bins import add_to_cells, zero_cells

_RESULT = 1 << 24  # bytes of the cells that a gradient finds at once
# Larger tables are slower than computing region by region.
_MORE = 4  # rectangles of a table per bin, at most
_TABLE = 1 << 26  # bytes of a table, at most


def forward(feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> Tensor:
    """The CPU kernel of `twostage::max_bins`."""
    exact = feature if feature.dtype == torch.float64 else feature.float()  # numpy has no bf16
    maps = exact.permute(0, 2, 3, 1).contiguous()
    if len(maps) == 1:  # no copy
        return _largest(maps[0], rows[0], columns[0], empty=0)[None].to(feature.dtype)
    out = feature.new_empty(*rows.shape[:3], columns.shape[2], feature.shape[1])
    for image, one in enumerate(zip(maps, rows, columns, strict=True)):
        out[image] = _largest(*one, empty=0)
    return out


def backward(gradient: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> Tensor:
    """The CPU kernel of `twostage::max_bins_gradient`: the maximum over keys of value and place, first ones first."""
    n, c, h, w = feature.shape
    cell = torch.arange(n * h * w).view(n, h, w, 1)
    keys = (_ranked(feature.permute(0, 2, 3, 1)).long() << 32) | (0x7FFFFFFF - cell)
    out = zero_cells(gradient, feature)
    together = max(16, _RESULT // max(8 * c * rows.shape[2] * columns.shape[2], 1))
    for image in range(n):
        for start in range(0, rows.shape[1], together):
            part = image, slice(start, start + together)
            largest = _largest(keys[image], rows[part], columns[part], empty=-1)
            add_to_cells(out, gradient[part], 0x7FFFFFFF - (largest & 0x7FFFFFFF), largest != -1)
    return out.to(gradient.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def _ranked(values: Tensor) -> Tensor:
    """Integers in the order of the values; -0.0 and 0.0 are equal."""
    if values.dtype == torch.float64:
        return torch.unique(values + 0.0, return_inverse=True)[1]
    bits = (values.float() + 0.0).contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _largest(cells: Tensor, rows: Tensor, columns: Tensor, *, empty: int) -> Tensor:
    """[p, by, bx, c]: the maximum of each bin of one image's regions over its cells [h, w, c]."""
    h, w, c = cells.shape
    p, by, bx = *rows.shape[:2], columns.shape[1]
    tall, wide = (max(1, int((x[..., 1] - x[..., 0]).max())) if p else 1 for x in (rows, columns))
    entries = tall * h * wide * w
    if entries > _MORE * p * by * bx or entries * c * cells.element_size() > _TABLE:
        return torch.from_numpy(_by_region(cells.numpy(), rows, columns, empty=empty))
    return _from_table(cells, rows.long(), columns.long(), tall, wide).masked_fill_(
        ((rows[..., 1] <= rows[..., 0])[:, :, None] | (columns[..., 1] <= columns[..., 0])[:, None])[..., None], empty
    )


def _from_table(cells: Tensor, rows: Tensor, columns: Tensor, tall: int, wide: int) -> Tensor:
    """Each bin's maximum, looked up among those of all rectangles up to `tall` x `wide`.

    A small map has fewer such rectangles than many regions have bins, and each costs one comparison.
    """
    h, w, c = cells.shape
    down = cells.expand(tall, h, w, c).clone()
    for k in range(1, tall):
        down[k] = down[k - 1]
        torch.maximum(down[k - 1, : h - k], cells[k:], out=down[k, : h - k])
    table = cells.new_empty(wide, tall, h, w, c)
    table[0] = down
    for k in range(1, wide):
        table[k] = table[k - 1]
        torch.maximum(table[k - 1, :, :, : w - k], down[:, :, k:], out=table[k, :, :, : w - k])
    height, width = ((x[..., 1] - x[..., 0]).clamp(min=1) - 1 for x in (rows, columns))
    top, left = rows[..., 0].clamp(max=h - 1), columns[..., 0].clamp(max=w - 1)
    place = (width[:, None, :] * tall + height[:, :, None]) * h + top[:, :, None]
    place = place * w + left[:, None, :]
    return table.view(-1, c).index_select(0, place.flatten()).view(*place.shape, c)


def _by_region(cells: NDArray, rows: Tensor, columns: Tensor, *, empty: int) -> NDArray:
    """The same as `_from_table`, region by region: first over the rows, then over the columns."""
    (p, by, _), bx = rows.shape, columns.shape[1]
    largest = np.full((p, by, bx, cells.shape[2]), empty, dtype=cells.dtype)
    for region, (down, across) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        left, right = min(start for start, _ in across), max(end for _, end in across)
        if left >= right:
            continue
        filled = [k for k, (start, end) in enumerate(down) if start < end]
        band = np.empty((len(filled), right - left, cells.shape[2]), dtype=cells.dtype)
        for k, row in zip(filled, band, strict=True):
            np.max(cells[slice(*down[k]), left:right], axis=0, out=row)
        for k, (start, end) in enumerate(across):
            if start < end:
                largest[region, filled, k] = band[:, start - left : end - left].max(axis=1)
    return largest
