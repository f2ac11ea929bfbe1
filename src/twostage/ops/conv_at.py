"""A convolution at some positions of maps only, with its gradients: for losses over a sample of all positions.

Letters: N images, S positions of each, C channels in, D out.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear


def conv_at(
    maps: Sequence[Float[Tensor, "n c _ _"]],
    cells: Int[Tensor, "n s"],
    weight: Float[Tensor, "d c k k"],
    bias: Float[Tensor, " d"] | None,
) -> Float[Tensor, "n s d"]:
    """A convolution of stride 1 whose output is as large as its input (k odd, padding k // 2), at these cells.

    Cells of an image are numbered over all its maps, map by map and row by row.
    """
    # One row of zeros first: what lies beside a map. Cells are contiguous where the map is channels-last, and so are
    # their gradients.
    table = torch.cat(
        [maps[0].new_zeros(1, maps[0].shape[1]), *(feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in maps)]
    )
    rows = _window_rows([(feature.shape[2], feature.shape[3]) for feature in maps], cells, weight.shape[2])
    windows = table.index_select(0, rows.flatten()).view(*cells.shape, -1)
    return linear(windows, weight.permute(0, 2, 3, 1).flatten(1), bias)


def _window_rows(shapes: Sequence[tuple[int, int]], cells: Int[Tensor, "n s"], side: int) -> Int[Tensor, "n s k k"]:
    """The rows of the table for a window of `side` around each cell; 0 beside its map."""
    n = len(cells)
    image = torch.arange(n, device=cells.device)[:, None]
    offset = torch.arange(side, device=cells.device) - side // 2
    rows = cells.new_zeros(*cells.shape, side, side)
    first = 0  # cell of the map
    for height, width in shapes:
        size = height * width
        own = cells - first
        y, x = (own // width)[..., None] + offset, (own % width)[..., None] + offset
        here = (own >= 0) & (own < size)
        inside = (here[..., None] & (y >= 0) & (y < height))[..., None] & ((x >= 0) & (x < width))[..., None, :]
        place = 1 + n * first + (image * size)[..., None, None] + (y * width)[..., None] + x[..., None, :]
        rows = torch.where(inside, place, rows)
        first += size
    return rows
