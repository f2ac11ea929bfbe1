"""Fused layers: those that replace convolutions and linear layers in `inference.prepare`, and `side_by_side`."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from twostage.ops.cpu.forms import ChosenConv, ChosenLinear
from twostage.ops.cpu.memory import empty
from twostage.ops.cpu.threads import adapt_to_load
from twostage.ops.plain import Activation, Conv, Linear, PlainConv, PlainLinear, Window

FormChoice = Literal["fastest", "first", "plain"]
"""Which form of a layer serves on a CPU: the fastest, found by trying; the first; or torch's own operator."""


class FusedConv(nn.Module):
    """A convolution with its normalisation folded in; adds a summand and applies an activation in the same pass.

    `activation` is the default; the blocks of a network pass one with each call. On a CPU it has several forms
    (`ops.cpu.forms`), of which `forms` chooses.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d c k l"],
        bias: Float[Tensor, " d"] | None,
        window: Window,
        activation: Activation = "none",
        *,
        forms: FormChoice = "fastest",
    ) -> None:
        super().__init__()
        self.conv: Conv = PlainConv.of(weight, bias, window)
        self.packs = weight.device.type == "cpu" and forms != "plain"
        if self.packs:
            chosen = ChosenConv(weight, bias, window)
            self.conv = chosen if forms == "fastest" else chosen.forms.first
        self.activation: Activation = activation

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        activation: Activation | None = None,
        add: Float[Tensor, "n d i j"] | None = None,
    ) -> Float[Tensor, "n d i j"]:
        """`activation(conv(x) + add)`; `add` may be overwritten."""
        if self.packs:
            adapt_to_load()
        return self.conv(x, activation or self.activation, add)


class FusedLinear(nn.Module):
    """A linear layer; `forms` as in `FusedConv`."""

    def __init__(
        self, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None, *, forms: FormChoice = "fastest"
    ) -> None:
        super().__init__()
        self.linear: Linear = PlainLinear(weight, bias)
        if weight.device.type == "cpu" and forms != "plain":
            chosen = ChosenLinear(weight, bias)
            self.linear = chosen if forms == "fastest" else chosen.forms.first

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
