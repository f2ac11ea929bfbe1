"""The maximum over rectangular bins of a feature map, the basis of RoIPool and spatial pyramid pooling.

Letters: n images, p regions of each, c channels, by x bx bins of a region. A bin is the cells from its start up to, not
including, its end along each axis. The operator is `twostage::max_bins`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from twostage.ops.accelerator import max_bins as _accelerator
from twostage.ops.cpu import max_bins as _cpu


def max_bins(
    feature: Float[Tensor, "n c h w"],
    rows: Int[Tensor, "n p by 2"],
    columns: Int[Tensor, "n p bx 2"],
    *,
    most: tuple[int, int],
) -> Float[Tensor, "n p c by bx"]:
    """The maximum over each bin, 0 where it is empty; the gradient goes to its first largest cell, row by row.

    `rows` and `columns` are starts and ends, within the map. `most` is the largest height and width of a bin that
    accelerators read. In memory the result is channels-last, [n, p, by, bx, c].
    """
    out: Tensor = torch.ops.twostage.max_bins(feature, rows, columns, list(most))
    return out.permute(0, 1, 4, 2, 3)


def _fake(feature: Tensor, rows: Tensor, columns: Tensor, most: Any) -> Tensor:
    n, p, by, _ = rows.shape
    return feature.new_empty(n, p, by, columns.shape[2], feature.shape[1])


def _fake_gradient(gradient: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, most: Any) -> Tensor:
    n, c, h, w = feature.shape
    return gradient.new_empty(n, h, w, c).permute(0, 3, 1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feature, rows, columns, ctx.most = inputs
    ctx.save_for_backward(feature, rows, columns)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.twostage.max_bins_gradient(gradient, *ctx.saved_tensors, ctx.most), None, None, None


torch.library.define("twostage::max_bins", "(Tensor feature, Tensor rows, Tensor columns, SymInt[] most) -> Tensor")
torch.library.define(
    "twostage::max_bins_gradient",
    "(Tensor gradient, Tensor feature, Tensor rows, Tensor columns, SymInt[] most) -> Tensor",
)
for _kernels, _device in ((_cpu, "cpu"), (_accelerator, "default")):
    torch.library.impl("twostage::max_bins", _device, _kernels.forward)
    torch.library.impl("twostage::max_bins_gradient", _device, _kernels.backward)
torch.library.register_fake("twostage::max_bins", _fake)
torch.library.register_fake("twostage::max_bins_gradient", _fake_gradient)
torch.library.register_autograd("twostage::max_bins", _backward, setup_context=_setup_context)
