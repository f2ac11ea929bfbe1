"""Convolutions and linear layers by oneDNN's fused primitives: bias, a second summand and an activation in one pass.

Weights are packed once into the layout that the primitives compute in. The operators are private to torch, made for its
compiler: `serves` tries them first.

A packed layout may depend on the shape of the input, and weights packed for another shape are reordered in every call,
at ten times the cost of the convolution. So only what has one layout for all shapes is packed: kernels larger than
1 x 1, and matrices. A 1 x 1 convolution is a matrix product with the channels of every pixel.
"""

from functools import cache
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.ops.cpu.memory import empty
from twostage.ops.plain import Activation, PlainConv, PlainLinear, Window, activate

_LARGE = 1 << 23  # bytes of a result from which on it is put into memory from `empty`
_BYTES = 1 << 22  # of one part of a matrix product that is computed in parts, so that it stays in the cache


class PackedConv(NamedTuple):
    """A convolution by one primitive of oneDNN."""

    weight: Tensor  # in its own layout
    bias: Float[Tensor, " d"] | None
    window: Window

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "d c k l"],
        bias: Float[Tensor, " d"] | None,
        window: Window,
        like: tuple[int, int] | None = None,
    ) -> "PackedConv":
        """Pack the weights, for maps of any size, best for maps `like` this (height, width)."""
        stride, padding, dilation, groups = window
        weight = weight.contiguous(memory_format=torch.channels_last)
        shape = None if like is None else (1, weight.shape[1] * groups, *like)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, shape)
        return cls(packed, bias, window)

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """See `Conv`; the result takes the memory of `add`, so that none is allocated."""
        stride, padding, dilation, groups = self.window
        arguments = (self.weight, self.bias, padding, stride, dilation, groups)
        out: Tensor
        sums = groups == 1 and activation in ("none", "relu")  # there is no primitive for other sums
        if add is None and sums and (shape := self._shape(x)).numel() * x.element_size() > _LARGE:
            # The primitive without a summand allocates memory; the one with a summand writes to that of the summand.
            add = empty((shape[0], *shape[2:], shape[1]), x.dtype).zero_().permute(0, 3, 1, 2)
        if add is None:
            out = torch.ops.mkldnn._convolution_pointwise(x, *arguments, *_named(activation))
        elif not sums:
            out = activate(self(x).add_(add), activation)
        else:
            add = add.contiguous(memory_format=torch.channels_last)
            after = None if activation == "none" else activation
            out = torch.ops.mkldnn._convolution_pointwise_.binary(add, x, *arguments, "add", 1.0, after, [], None)
        return out

    def _shape(self, x: Tensor) -> torch.Size:
        """The shape of the result."""
        sides = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(
                x.shape[2:], self.weight.shape[2:], *self.window[:3], strict=True
            )
        )
        return torch.Size((x.shape[0], self.weight.shape[0], *sides))


class PackedPointwise(NamedTuple):
    """A 1 x 1 convolution without padding and groups: a matrix product by one primitive of oneDNN."""

    weight: Tensor  # in its own layout
    bias: Float[Tensor, " d"] | None
    stride: tuple[int, int]

    @classmethod
    def of(
        cls, weight: Float[Tensor, "d c 1 1"], bias: Float[Tensor, " d"] | None, window: Window
    ) -> "PackedPointwise":
        """Pack the weights, for maps of any size."""
        return cls(_packed_matrix(weight[:, :, 0, 0]), bias, window.stride)

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """See `Conv`; the result takes the memory of `add`."""
        pixels = x.permute(0, 2, 3, 1)[:, :: self.stride[0], :: self.stride[1]]
        shape, rows = (*pixels.shape[:3], self.weight.shape[0]), pixels.reshape(-1, pixels.shape[3])
        if add is not None:
            out = add.permute(0, 2, 3, 1).reshape(len(rows), shape[3])
            self._by_parts(rows, activation, out, add=True)
        elif prod(shape) * x.element_size() > _LARGE:
            out = empty((len(rows), shape[3]), x.dtype)
            self._by_parts(rows, activation, out, add=False)
        else:
            out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, *_named(activation))
        return out.view(shape).permute(0, 3, 1, 2)

    def _by_parts(
        self, rows: Float[Tensor, "m c"], activation: Activation, out: Float[Tensor, "m d"], add: bool
    ) -> None:
        """Write to `out`, or add to it, in small parts: the primitive allocates its result, here little at a time."""
        step = max(1, _BYTES // (out.shape[1] * out.element_size()))
        for x, place in zip(rows.split(step), out.split(step), strict=True):
            if add:
                part = torch.ops.mkldnn._linear_pointwise.binary(x, place, self.weight, self.bias, "add")
            else:
                part = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            if activation == "relu":
                torch.clamp_min(part, 0, out=place)
            else:
                place.copy_(activate(part, activation))


class PackedLinear(NamedTuple):
    """A linear layer by one primitive of oneDNN."""

    weight: Tensor  # in its own layout
    bias: Float[Tensor, " d"] | None

    @classmethod
    def of(cls, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> "PackedLinear":
        """Pack the weights, for any number of rows."""
        return cls(_packed_matrix(weight), bias)

    def __call__(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.functional.linear`."""
        return torch.ops.mkldnn._linear_pointwise(x, *self, "none", [], "")


def serves(device: str, dtype: torch.dtype) -> bool:
    """Whether the private operators can be used here: oneDNN is available, enabled, and passes a trial."""
    return (
        device == "cpu" and torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled() and _passes(dtype)
    )


@cache
def _passes(dtype: torch.dtype) -> bool:
    """Whether the operators exist, take these arguments and give the right results."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        x = torch.rand(1, 8, 9, 9).to(dtype).contiguous(memory_format=torch.channels_last)
        weight, bias, window = torch.rand(8, 8, 3, 3).to(dtype), torch.rand(8).to(dtype), Window(padding=(1, 1))
        small, strided = weight[:, :, :1, :1].clone(), Window(stride=(2, 2))
        plain, point = PlainConv(weight, bias, window), PlainConv(small, bias, strided)
        rows, flat = x.permute(0, 2, 3, 1).flatten(1, 2), PlainLinear(small[:, :, 0, 0], bias)
        try:
            packed, pointwise = PackedConv.of(weight, bias, window), PackedPointwise.of(small, bias, strided)
            pairs = [
                (packed(x, "hardswish"), plain(x, "hardswish")),
                (packed(4 * x, "relu6"), plain(4 * x, "relu6")),
                (pointwise(4 * x, "relu6"), point(4 * x, "relu6")),
                (packed(x, "relu", _copy(x)), plain(x, "relu", x)),
                (pointwise(x, "relu", _copy(point(x))), point(x, "relu", point(x))),
                (PackedLinear.of(flat.weight, bias)(rows), flat(rows)),
            ]
        except (RuntimeError, AttributeError, TypeError):
            return False
    return all(torch.allclose(got, expected, rtol=1e-2) for got, expected in pairs)


def _named(activation: Activation) -> tuple[str, list[float], str]:
    """The arguments of an activation: its name there, its parameters, and the algorithm."""
    return ("hardtanh", [0.0, 6.0], "") if activation == "relu6" else (activation, [], "")


def _packed_matrix(weight: Float[Tensor, "d c"]) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.preserve_format)
