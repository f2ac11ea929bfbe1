"""Convolutions with their activation, and linear layers, by torch's public operators on any device."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, hardswish, linear, relu6

Activation = Literal["none", "relu", "relu6", "hardswish"]


class Window(NamedTuple):
    """The geometry of a convolution: `torch.nn.functional.conv2d`'s arguments of these names."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@runtime_checkable
class Conv(Protocol):
    """The interface of all forms of a convolution."""

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """`activation(conv(x) + bias + add)`; `add` may be overwritten."""
        ...


def activate(x: Float[Tensor, "*n"], activation: Activation) -> Float[Tensor, "*n"]:
    """Apply the activation in place; returns `x`."""
    if activation == "none":
        return x
    if activation == "relu6":
        # Its gradient needs the result alone, that of a clamp the input; without one a clamp takes half the time.
        return relu6(x, inplace=True) if x.requires_grad else x.clamp_(0, 6)
    return x.relu_() if activation == "relu" else hardswish(x, inplace=True)


class PlainConv(NamedTuple):
    """A convolution by torch's public operators."""

    weight: Float[Tensor, "d c k l"]
    bias: Float[Tensor, " d"] | None
    window: Window

    @classmethod
    def of(cls, weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window) -> "PlainConv":
        """Keep the weights channels-last."""
        return cls(weight.contiguous(memory_format=torch.channels_last), bias, window)

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """See `Conv`."""
        y = conv2d(x, self.weight, self.bias, *self.window)
        return activate(y if add is None else y + add, activation)


class Linear(Protocol):
    """The interface of all forms of a linear layer."""

    def __call__(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.functional.linear`."""
        ...


class PlainLinear(NamedTuple):
    """A linear layer by torch's public operator."""

    weight: Float[Tensor, "d c"]
    bias: Float[Tensor, " d"] | None

    def __call__(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.functional.linear`."""
        return linear(x, self.weight, self.bias)
