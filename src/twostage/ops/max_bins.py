"""The largest value in rectangular bins of a feature map: what RoIPool and spatial pyramid pooling are made of.

Letters: n images, p regions of each, c channels, by x bx bins of a region. A bin is the cells from its start up to, not
including, its end along each axis. The operator is `twostage::max_bins`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

_RESULT = 1 << 24  # bytes of the cells that are found together for a gradient on the CPU
_MORE = 4  # times the bins are as many rectangles as a table may have,
_TABLE = 1 << 26  # and so many bytes: beyond, the regions by themselves are quicker


def max_bins(
    feature: Float[Tensor, "n c h w"],
    rows: Int[Tensor, "n p by 2"],
    columns: Int[Tensor, "n p bx 2"],
    *,
    most: tuple[int, int],
) -> Float[Tensor, "n p c by bx"]:
    """The maximum over each bin, 0 where it is empty; the gradient goes to its first largest cell, row by row.

    `rows` and `columns` are starts and ends, within the map. `most` is the largest height and width of a bin that
    devices other than the CPU look at. In memory the result is channels-last, [n, p, by, bx, c].
    """
    out: Tensor = torch.ops.twostage.max_bins(feature, rows, columns, list(most))
    return out.permute(0, 1, 4, 2, 3)


def _cpu(feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> Tensor:
    """The CPU kernel."""
    exact = feature if feature.dtype == torch.float64 else feature.float()  # numpy has no bf16
    maps = exact.permute(0, 2, 3, 1).contiguous()
    if len(maps) == 1:  # no copy
        return _largest(maps[0], rows[0], columns[0], empty=0)[None].to(feature.dtype)
    out = feature.new_empty(*rows.shape[:3], columns.shape[2], feature.shape[1])
    for image, one in enumerate(zip(maps, rows, columns, strict=True)):
        out[image] = _largest(*one, empty=0)
    return out


def _cpu_gradient(gradient: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> Tensor:
    """The CPU kernel: the same maximum over keys that order cells by value and then by place, first ones first."""
    n, c, h, w = feature.shape
    cell = torch.arange(n * h * w).view(n, h, w, 1)
    keys = (_ranked(feature.permute(0, 2, 3, 1)).long() << 32) | (0x7FFFFFFF - cell)
    out = _sums(gradient, feature)
    together = max(16, _RESULT // max(8 * c * rows.shape[2] * columns.shape[2], 1))
    for image in range(n):
        for start in range(0, rows.shape[1], together):
            part = image, slice(start, start + together)
            found = _largest(keys[image], rows[part], columns[part], empty=-1)
            _scatter(out, gradient[part], 0x7FFFFFFF - (found & 0x7FFFFFFF), found != -1)
    return out.to(gradient.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def _ranked(values: Tensor) -> Tensor:
    """Whole numbers in the order of the values; of the two zeros neither is larger."""
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

    Small maps have fewer such rectangles than many regions have bins, and each costs one comparison.
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
    """The same for each region by itself, first over the rows and then over the columns."""
    (p, by, _), bx = rows.shape, columns.shape[1]
    found = np.full((p, by, bx, cells.shape[2]), empty, dtype=cells.dtype)
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
                found[region, filled, k] = band[:, start - left : end - left].max(axis=1)
    return found


def _fixed(feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> Tensor:
    """The kernel for all devices but the CPU."""
    best, _ = _first_largest(feature, rows, columns, most)
    return best.view(*rows.shape[:3], columns.shape[2], feature.shape[1])


def _fixed_gradient(gradient: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, most: Sequence[int]) -> Tensor:
    """The kernel for all devices but the CPU."""
    _, place = _first_largest(feature, rows, columns, most)
    n, c, h, w = feature.shape
    out = _sums(gradient, feature)
    _scatter(out, gradient, place.clamp(min=0), place >= 0)
    return out.to(gradient.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def _sums(gradient: Tensor, feature: Tensor) -> Tensor:
    """Zeros for the cells; float32 at least: in bf16 a cell that many regions share would lose small parts."""
    n, c, h, w = feature.shape
    return gradient.new_zeros(n * h * w, c, dtype=torch.promote_types(gradient.dtype, torch.float32))


def _scatter(cells: Tensor, gradient: Tensor, place: Tensor, filled: Tensor) -> None:
    """Add the gradient of each value, of bins that are not empty, to its cell."""
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


def _fake(feature: Tensor, rows: Tensor, columns: Tensor, most: Any) -> Tensor:
    n, p, by, _ = rows.shape
    return feature.new_empty(n, p, by, columns.shape[2], feature.shape[1])


def _fake_gradient(gradient: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, most: Any) -> Tensor:
    n, c, h, w = feature.shape
    return gradient.new_empty(n, h, w, c).permute(0, 3, 1, 2)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feature, rows, columns, ctx.most = inputs
    ctx.save_for_backward(feature, rows, columns)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    found = torch.ops.twostage.max_bins_gradient(gradient, *ctx.saved_tensors, ctx.most)
    return found, None, None, None


torch.library.define("twostage::max_bins", "(Tensor feature, Tensor rows, Tensor columns, SymInt[] most) -> Tensor")
torch.library.define(
    "twostage::max_bins_gradient",
    "(Tensor gradient, Tensor feature, Tensor rows, Tensor columns, SymInt[] most) -> Tensor",
)
torch.library.impl("twostage::max_bins", "cpu", _cpu)
torch.library.impl("twostage::max_bins", "default", _fixed)
torch.library.impl("twostage::max_bins_gradient", "cpu", _cpu_gradient)
torch.library.impl("twostage::max_bins_gradient", "default", _fixed_gradient)
torch.library.register_fake("twostage::max_bins", _fake)
torch.library.register_fake("twostage::max_bins_gradient", _fake_gradient)
torch.library.register_autograd("twostage::max_bins", _backward, setup_context=_remember)
