"""A convolution or a linear layer with all that follows it in one pass: bias, a second summand, an activation.

On a processor these are oneDNN's fused primitives, with weights packed once into the layout they compute in, and for
float32 Winograd's convolution. torch keeps oneDNN's operators private, for its compiler: where they are missing, or
fail a trial, plain operators serve.
"""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, linear

from twostage.ops import winograd
from twostage.ops.activation import Activation, activate


class Window(NamedTuple):
    """How a convolution moves over its map: `torch.nn.functional.conv2d`'s arguments of these names."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class PlainConv(NamedTuple):
    """A convolution by plain operators, on any device."""

    weight: Float[Tensor, "d c k l"]
    bias: Float[Tensor, " d"] | None
    window: Window

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """`activation(conv(x) + bias + add)`."""
        y = conv2d(x, self.weight, self.bias, *self.window)
        return activate(y if add is None else y + add, activation)


class PackedConv(NamedTuple):
    """A convolution by one primitive of oneDNN."""

    weight: Tensor  # in its own layout
    bias: Float[Tensor, " d"] | None
    window: Window

    @classmethod
    def of(cls, weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window) -> "PackedConv":
        """Pack the weights, for maps of any size."""
        stride, padding, dilation, groups = window
        weight = weight.contiguous(memory_format=torch.channels_last)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups)
        return cls(packed, bias, window)

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """`activation(conv(x) + bias + add)`, in the memory of `add`: as much need not be found anew."""
        stride, padding, dilation, groups = self.window
        arguments = (self.weight, self.bias, padding, stride, dilation, groups)
        found: Tensor
        if add is None:
            found = torch.ops.mkldnn._convolution_pointwise(x, *arguments, activation, [], "")
        elif groups > 1 or activation == "hardswish":  # such a sum has no primitive
            found = activate(self(x).add_(add), activation)
        else:
            after = None if activation == "none" else activation
            found = torch.ops.mkldnn._convolution_pointwise_.binary(add, x, *arguments, "add", 1.0, after, [], None)
        return found


class PlainLinear(NamedTuple):
    """A linear layer by the plain operator, on any device."""

    weight: Float[Tensor, "d c"]
    bias: Float[Tensor, " d"] | None

    def __call__(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.functional.linear`."""
        return linear(x, self.weight, self.bias)


class PackedLinear(NamedTuple):
    """A linear layer by one primitive of oneDNN."""

    weight: Tensor  # in its own layout
    bias: Float[Tensor, " d"] | None

    @classmethod
    def of(cls, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> "PackedLinear":
        """Pack the weights, for any number of rows."""
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias)

    def __call__(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.functional.linear`."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, *self, "none", [], "")
        return found


Conv = PlainConv | PackedConv | winograd.WinogradConv
Linear = PlainLinear | PackedLinear


def best_conv(weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window) -> Conv:
    """The quickest way to do a convolution on the device of its weights; these are kept once, in the form it takes."""
    if _serves(weight.device.type, weight.dtype):
        if window.dilation == (1, 1) and winograd.suits(weight, window.stride, window.padding, window.groups):
            return winograd.WinogradConv.of(weight, bias)
        return PackedConv.of(weight, bias, window)
    return PlainConv(weight.contiguous(memory_format=torch.channels_last), bias, window)


def best_linear(weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> Linear:
    """The quickest way to do a linear layer on the device of its weights; these are kept once, in the form it takes."""
    if _serves(weight.device.type, weight.dtype):
        return PackedLinear.of(weight, bias)
    return PlainLinear(weight, bias)


@cache
def _serves(device: str, dtype: torch.dtype) -> bool:
    """Whether the private operators are here, take these arguments and give the results they should."""
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        x = torch.rand(1, 8, 9, 9).to(dtype).contiguous(memory_format=torch.channels_last)
        weight, bias, window = torch.rand(8, 8, 3, 3).to(dtype), torch.rand(8).to(dtype), Window(padding=(1, 1))
        rows, matrix = x.permute(0, 2, 3, 1).flatten(1, 2), weight[:, :, 0, 0].clone()
        plain, flat = PlainConv(weight, bias, window), PlainLinear(matrix, bias)
        try:
            packed = PackedConv.of(weight, bias, window)
            pairs = [
                (packed(x, "hardswish"), plain(x, "hardswish")),
                (packed(x, "relu", x.clone(memory_format=torch.preserve_format)), plain(x, "relu", x)),
                (PackedLinear.of(matrix, bias)(rows), flat(rows)),
            ]
        except (RuntimeError, AttributeError, TypeError):
            return False
    return all(torch.allclose(found, expected, rtol=1e-2) for found, expected in pairs)
