"""Activation functions by name."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardswish

Activation = Literal["none", "relu", "hardswish"]


def activate(x: Float[Tensor, "*n"], activation: Activation) -> Float[Tensor, "*n"]:
    """Apply the activation in place; returns `x`."""
    if activation == "none":
        return x
    return x.relu_() if activation == "relu" else hardswish(x, inplace=True)
