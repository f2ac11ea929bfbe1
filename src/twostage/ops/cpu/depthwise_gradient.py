"""The depthwise convolution in training on a CPU: with its gradients, in float32.

oneDNN's gradient in the kernels is slow where the kernels are larger than 3 x 3 and have a stride, and several times as
slow again in bfloat16. With stride 2 both gradients are those of four convolutions with stride 1: one for each parity
of the rows and columns of the input, with every second row and column of the kernels.
"""

from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from twostage.ops.plain import Window

_LAST = torch.channels_last


def depthwise_conv(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "c 1 k k"], bias: Float[Tensor, " c"] | None, window: Window
) -> Float[Tensor, "n c i j"]:
    """The convolution, differentiable once in all three."""
    out: Tensor = _Convolution.apply(x, weight, bias, window)
    return out


def is_depthwise(weight: Float[Tensor, "d _ k l"], window: Window) -> bool:
    """Whether every channel has a square kernel of its own."""
    channels, each, rows, columns = weight.shape
    return each == 1 and channels == window.groups > 1 and rows == columns > 1


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        # `data`: a view that a function made may not be changed in place by the activation that follows.
        return conv2d(x, weight, bias, *window).data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Window], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.window = inputs[3]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # In a loss that is differentiated within autocast, what follows would be cast to bfloat16 again.
        with torch.autocast("cpu", enabled=False):
            of_y, wide, kernels = (t.float().contiguous(memory_format=_LAST) for t in (gradient, x, weight))
            gradients = _by_parity if _halves(x, weight, ctx.window) else _plain
            of_x, of_weight = gradients(of_y, wide, kernels, ctx.window, needs_x, needs_weight)
            of_bias = of_y.sum((0, 2, 3)) if needs_bias else None
        return (
            None if of_x is None else of_x.to(x.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            of_bias,
            None,
        )


def _halves(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether kernels and input can be divided by parity, and the output has half of the input's rows and columns."""
    size = weight.shape[2]
    even = all(side % 2 == 0 for side in (size, *x.shape[2:]))
    return even and size <= 6 and window[:3] == ((2, 2), (size // 2 - 1,) * 2, (1, 1))


def _plain(
    gradient: Tensor, x: Tensor, weight: Tensor, window: Window, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients by torch's operator."""
    stride, padding, dilation, groups = window
    fixed = ([0], stride, padding, dilation, False, [0, 0], groups)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, *fixed, [needs_x, needs_weight, False]
    )
    return of_x, of_weight


def _by_parity(
    gradient: Tensor, x: Tensor, weight: Tensor, window: Window, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients for stride 2, from those of 3 x 3 kernels with stride 1.

    Row r of the input meets row i of a kernel in row o of the output where r = 2 o + i - p. With r = 2 u + s, and i of
    the same parity as s + p, it is u = o + (i - p - s) / 2: row (i - p - s) / 2 + 1 of a 3 x 3 kernel with padding 1.
    """
    size, padding = weight.shape[2], window.padding[0]
    of_x = torch.empty_like(x) if needs_x else None
    of_weight = torch.empty_like(weight) if needs_weight else None
    for rows, columns in product((0, 1), repeat=2):
        part = (..., slice(rows, None, 2), slice(columns, None, 2))
        (taken, places), (taken_across, places_across) = (_third(size, padding, side) for side in (rows, columns))
        here, there = (..., taken, taken_across), (..., places, places_across)
        kernels = weight.new_zeros(len(weight), 1, 3, 3)
        kernels[there] = weight[here]
        inputs = x[part].contiguous(memory_format=_LAST)
        same = Window(padding=(1, 1), groups=window.groups)
        some_x, some_weight = _plain(gradient, inputs, kernels, same, needs_x, needs_weight)
        if of_x is not None and some_x is not None:
            of_x[part] = some_x
        if of_weight is not None and some_weight is not None:
            of_weight[here] = some_weight[there]
    return of_x, of_weight


def _third(size: int, padding: int, parity: int) -> tuple[slice, slice]:
    """The rows of the kernels that rows of this parity of the input meet, and their places in a 3 x 3 kernel."""
    first = (parity + padding) % 2
    start = (first - padding - parity) // 2 + 1
    return slice(first, None, 2), slice(start, start + size // 2)
