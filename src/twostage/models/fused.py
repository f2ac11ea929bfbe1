"""Fused layers: those that replace convolutions and linear layers in `inference.prepare`, and `side_by_side`."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from twostage.ops.cpu import packed, winograd
from twostage.ops.cpu.memory import empty
from twostage.ops.plain import Activation, Conv, PlainConv, PlainLinear, Window


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


class FusedConv(nn.Module):
    """A convolution with its normalisation folded in; adds a summand and applies an activation in the same pass.

    `activation` is the default; the blocks of a network pass one with each call.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d c k l"],
        bias: Float[Tensor, " d"] | None,
        window: Window,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.conv = best_conv(weight, bias, window)
        self.activation: Activation = activation

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        activation: Activation | None = None,
        add: Float[Tensor, "n d i j"] | None = None,
    ) -> Float[Tensor, "n d i j"]:
        """`activation(conv(x) + add)`; `add` may be overwritten."""
        return self.conv(x, activation or self.activation, add)


class FusedLinear(nn.Module):
    """A linear layer with packed weights."""

    def __init__(self, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> None:
        super().__init__()
        self.linear = best_linear(weight, bias)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.Linear`."""
        return self.linear(x)


class KeptNearest(nn.Module):
    """`backbones.fpn.Nearest` that reuses memory on the CPU (`ops.cpu.memory`)."""

    def forward(self, x: Float[Tensor, "n c h w"], size: Sequence[int]) -> Float[Tensor, "n c _ _"]:
        """The map at this height and width."""
        if x.device.type != "cpu":
            return interpolate(x, size, mode="nearest")
        out = empty((len(x), *size, x.shape[1]), x.dtype).permute(0, 3, 1, 2)
        torch.ops.aten.upsample_nearest2d.out(x, size, None, None, out=out)
        return out


def side_by_side(x: Float[Tensor, "n c h w"], *convs: nn.Conv2d) -> tuple[Float[Tensor, "n _ h w"], ...]:
    """The outputs of several 1 x 1 convolutions of one map, computed as a single convolution."""
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
    return conv2d(x, weight, bias).split([conv.out_channels for conv in convs], dim=1)
