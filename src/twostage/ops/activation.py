"""What follows a convolution, by name."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardswish

Activation = Literal["none", "relu", "hardswish"]


def activate(x: Float[Tensor, "*n"], activation: Activation) -> Float[Tensor, "*n"]:
    """The activation, in the memory of `x`, which is then lost."""
    if activation == "none":
        return x
    return x.relu_() if activation == "relu" else hardswish(x, inplace=True)
