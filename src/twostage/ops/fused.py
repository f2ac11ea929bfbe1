"""A convolution or a linear layer with all that follows it in one pass: bias, a second summand, an activation.

On a processor these are oneDNN's fused primitives, with weights packed once into the layout they compute in. torch
keeps their operators private, for its compiler: where they are missing, or fail a trial, plain operators serve.
"""

from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, hardswish, linear

Activation = Literal["none", "relu", "hardswish"]


class Window(NamedTuple):
    """How a convolution moves over its map: `torch.nn.functional.conv2d`'s arguments of these names."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class Packed(NamedTuple):
    """Weights in the layout of oneDNN; `bias` is an ordinary tensor."""

    weight: Tensor
    bias: Tensor | None


def pack_conv(weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window) -> Packed | None:
    """The weights of a convolution for `packed_conv`, on maps of any size; None where oneDNN does not serve."""
    if not _serves(weight.device.type, weight.dtype):
        return None
    return _pack_conv(weight, bias, window)


def pack_linear(weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> Packed | None:
    """The weights of a linear layer for `packed_linear`, on any number of rows; None where oneDNN does not serve."""
    if not _serves(weight.device.type, weight.dtype):
        return None
    return Packed(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias)


def packed_conv(
    x: Float[Tensor, "n c h w"],
    packed: Packed,
    window: Window,
    activation: Activation = "none",
    add: Float[Tensor, "n d i j"] | None = None,
) -> Float[Tensor, "n d i j"]:
    """`plain_conv` by one primitive. `add` is overwritten with the result: memory as large need not be found anew."""
    stride, padding, dilation, groups = window
    where = (padding, stride, dilation, groups)
    if add is None:
        return torch.ops.mkldnn._convolution_pointwise(x, *packed, *where, activation, [], "")
    if groups > 1 or activation == "hardswish":  # such a sum has no primitive
        return activate(packed_conv(x, packed, window).add_(add), activation)
    after = None if activation == "none" else activation
    return torch.ops.mkldnn._convolution_pointwise_.binary(add, x, *packed, *where, "add", 1.0, after, [], None)


def packed_linear(x: Float[Tensor, "*n c"], packed: Packed) -> Float[Tensor, "*n d"]:
    """`torch.nn.functional.linear` by one primitive."""
    return torch.ops.mkldnn._linear_pointwise(x, *packed, "none", [], "")


def plain_conv(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "d c2 k l"],
    bias: Float[Tensor, " d"] | None,
    window: Window,
    activation: Activation = "none",
    add: Float[Tensor, "n d i j"] | None = None,
) -> Float[Tensor, "n d i j"]:
    """`activation(conv(x) + bias + add)`."""
    y = conv2d(x, weight, bias, *window)
    return activate(y if add is None else y + add, activation)


def activate(x: Float[Tensor, "*n"], activation: Activation) -> Float[Tensor, "*n"]:
    """The activation, in the memory of `x`, which is then lost."""
    if activation == "none":
        return x
    return x.relu_() if activation == "relu" else hardswish(x, inplace=True)


def _pack_conv(weight: Tensor, bias: Tensor | None, window: Window) -> Packed:
    stride, padding, dilation, groups = window
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Packed(torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups), bias)


@cache
def _serves(device: str, dtype: torch.dtype) -> bool:
    """Whether the private operators are here, take these arguments and give the results they should."""
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        x = torch.rand(1, 8, 9, 9).to(dtype).contiguous(memory_format=torch.channels_last)
        weight, bias, window = torch.rand(8, 8, 3, 3).to(dtype), torch.rand(8).to(dtype), Window(padding=(1, 1))
        flat = x.permute(0, 2, 3, 1).flatten(1, 2)
        try:
            packed = _pack_conv(weight, bias, window)
            found = [
                packed_conv(x, packed, window, "hardswish"),
                packed_conv(x, packed, window, "relu", x.clone(memory_format=torch.preserve_format)),
                packed_linear(flat, Packed(torch.ops.mkldnn._reorder_linear_weight(weight[:, :, 0, 0].clone()), bias)),
            ]
        except (RuntimeError, AttributeError, TypeError):
            return False
        expected: list[Any] = [
            plain_conv(x, weight, bias, window, "hardswish"),
            plain_conv(x, weight, bias, window, "relu", x),
            linear(flat, weight[:, :, 0, 0], bias),
        ]
    return all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(found, expected, strict=True))
