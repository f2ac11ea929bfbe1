"""Layers of a prepared model: what `inference.prepare` puts in the places of convolutions and linear layers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from twostage.ops.fused import (
    Activation,
    Window,
    pack_conv,
    pack_linear,
    packed_conv,
    packed_linear,
    plain_conv,
)


class FusedConv(nn.Module):
    """A convolution with its normalisation folded in; adds a summand and applies an activation in the same pass.

    `activation` is that of a convolution in a plain sequence; in the blocks of a network it is given with each call.
    Weights are kept once: packed, or plain where oneDNN does not serve.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d c k l"],
        bias: Float[Tensor, " d"] | None,
        window: Window,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.window = window
        self.activation: Activation = activation
        self.packed = pack_conv(weight, bias, window)
        if self.packed is None:
            self.weight = weight.contiguous(memory_format=torch.channels_last)
            self.bias = bias

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        activation: Activation | None = None,
        add: Float[Tensor, "n d i j"] | None = None,
    ) -> Float[Tensor, "n d i j"]:
        """`activation(conv(x) + add)`; `add` may be overwritten."""
        activation = activation or self.activation
        if self.packed is None:
            return plain_conv(x, self.weight, self.bias, self.window, activation, add)
        return packed_conv(x, self.packed, self.window, activation, add)


class FusedLinear(nn.Module):
    """A linear layer with packed weights, kept once."""

    def __init__(self, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> None:
        super().__init__()
        self.packed = pack_linear(weight, bias)
        if self.packed is None:
            self.weight, self.bias = weight, bias

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.Linear`."""
        if self.packed is None:
            return linear(x, self.weight, self.bias)
        return packed_linear(x, self.packed)


def side_by_side(x: Float[Tensor, "n c h w"], *convs: nn.Conv2d) -> tuple[Float[Tensor, "n _ h w"], ...]:
    """The outputs of several 1 x 1 convolutions of one map, which is read once for all."""
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
    return conv2d(x, weight, bias).split([conv.out_channels for conv in convs], dim=1)
