"""The fastest form of a convolution or a linear layer on the device of its weights."""

from jaxtyping import Float
from torch import Tensor

from twostage.ops.cpu import packed, winograd
from twostage.ops.plain import Conv, PlainConv, PlainLinear, Window


def best_conv(weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window) -> Conv:
    """The fastest form of a convolution, with its weights packed for it."""
    if not packed.serves(weight.device.type, weight.dtype):
        return PlainConv.of(weight, bias, window)
    if winograd.suits(weight, window):
        return winograd.BySize(weight, bias, window)
    if weight.shape[2:] == (1, 1) and window.padding == (0, 0) and window.groups == 1:
        return packed.PackedPointwise.of(weight, bias, window)
    return packed.PackedConv.of(weight, bias, window)


def best_linear(weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> PlainLinear | packed.PackedLinear:
    """The fastest form of a linear layer, with its weights packed for it."""
    if packed.serves(weight.device.type, weight.dtype):
        return packed.PackedLinear.of(weight, bias)
    return PlainLinear(weight, bias)
