"""Fused layers: those that replace convolutions and linear layers in `inference.prepare`, and `side_by_side`."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from twostage.ops.cpu.forms import ChosenConv, ChosenLinear
from twostage.ops.cpu.memory import empty
from twostage.ops.cpu.threads import adapt_to_load
from twostage.ops.plain import Activation, Conv, Linear, PlainConv, PlainLinear, Window


class FusedConv(nn.Module):
    """A convolution with its normalisation folded in; adds a summand and applies an activation in the same pass.

    `activation` is the default; the blocks of a network pass one with each call. On a CPU it has several forms, of
    which the fastest is chosen (`ops.cpu.forms`), or with `choose` False the first.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d c k l"],
        bias: Float[Tensor, " d"] | None,
        window: Window,
        activation: Activation = "none",
        *,
        choose: bool = True,
    ) -> None:
        super().__init__()
        self.conv: Conv = PlainConv.of(weight, bias, window)
        if weight.device.type == "cpu":
            chosen = ChosenConv(weight, bias, window)
            self.conv = chosen if choose else chosen.forms.first
        self.activation: Activation = activation

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        activation: Activation | None = None,
        add: Float[Tensor, "n d i j"] | None = None,
    ) -> Float[Tensor, "n d i j"]:
        """`activation(conv(x) + add)`; `add` may be overwritten."""
        if x.device.type == "cpu":
            adapt_to_load()
        return self.conv(x, activation or self.activation, add)


class FusedLinear(nn.Module):
    """A linear layer, on a CPU in the fastest of its forms; `choose` as in `FusedConv`."""

    def __init__(self, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None, *, choose: bool = True) -> None:
        super().__init__()
        self.linear: Linear = PlainLinear(weight, bias)
        if weight.device.type == "cpu":
            chosen = ChosenLinear(weight, bias)
            self.linear = chosen if choose else chosen.forms.first

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
