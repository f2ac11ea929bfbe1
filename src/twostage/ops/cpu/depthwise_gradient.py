"""Depthwise convolutions in training, with gradients in the kernels from 3 x 3 ones of stride 1.

oneDNN computes that gradient for 3 x 3 kernels of stride 1 as fast as the convolution, and takes ten times as long with
5 x 5 kernels and with stride 2. A tap k of a kernel with stride s and padding p reads x[s y + k - p] for the output y.
With k - p = s q + r that is pixel y + q of the image of every s-th pixel from r on: one such image for each remainder
along both axes, whose taps q are covered by 3 x 3 blocks.

Images are copied with zeros around them into one tall canvas, the gradient of the output into another of the same
shape. A canvas moved by some pixels is then the same memory read from another place on: what moves over the end of a
row are zeros. What a block reads beyond a moved canvas counts as zero and is not, but there the output's gradient is
zero.
"""

from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from twostage.ops.plain import Window

_SIDE = 3  # taps of a block
_KERNEL_ONLY = [False, True, False]  # of the gradients in the input, the kernel and the bias


def depthwise_conv(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "c 1 k l"], bias: Float[Tensor, " c"] | None, window: Window
) -> Float[Tensor, "n c i j"]:
    """The convolution in the dtype of `x`, differentiable once in all three; kernels' gradients in float32."""
    out: Tensor = _Depthwise.apply(x, weight, bias, window)
    return out


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        # `data`: a view that a function made may not be changed in place by the activation that follows.
        return conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), *window).data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Window], output: Tensor) -> None:
        x, weight, _, ctx.window = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of_x = _input_gradient(gradient, x, weight, ctx.window) if needs_x else None
        of_weight = kernel_gradient(gradient, x, weight.shape, ctx.window).to(weight.dtype) if needs_weight else None
        of_bias = gradient.sum((0, 2, 3), dtype=weight.dtype) if needs_bias else None
        return of_x, of_weight, of_bias, None


def _input_gradient(
    gradient: Float[Tensor, "n c i j"], x: Float[Tensor, "n c h w"], weight: Float[Tensor, "c 1 k l"], window: Window
) -> Float[Tensor, "n c h w"]:
    """In float32: with a stride oneDNN takes tens of times as long in bfloat16."""
    of_x: Tensor = torch.ops.aten.convolution_backward(
        gradient.float(),
        torch.empty_like(x, dtype=torch.float32),  # for its shape
        weight.float(),
        None,
        *window[:3],
        False,
        [0, 0],
        window.groups,
        [True, False, False],
    )[0]
    return of_x.to(x.dtype)


def kernel_gradient(
    gradient: Float[Tensor, "n c i j"], x: Float[Tensor, "n c h w"], shape: torch.Size, window: Window
) -> Float[Tensor, "c 1 k l"]:
    """The gradient in depthwise kernels of this shape, without dilation; in float32."""
    down, across = (_parts(shape[2 + axis], window.stride[axis], window.padding[axis]) for axis in (0, 1))
    canvas = _Canvas.of(gradient, x, window, max(p.reach for p in down), max(p.reach for p in across))
    of_out = canvas.view(canvas.filled(gradient), 0)
    kernel = of_out.new_empty(canvas.channels, 1, _SIDE, _SIDE)  # for its shape
    out = of_out.new_zeros(shape)
    for rows, columns in product(down, across):
        pixels = canvas.filled(x[:, :, rows.remainder :: window.stride[0], columns.remainder :: window.stride[1]])
        for (row, ky), (column, kx) in product(rows.blocks, columns.blocks):
            moved = canvas.view(pixels, row * canvas.width + column)
            block: Tensor = torch.ops.aten.convolution_backward(
                of_out, moved, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], canvas.channels, _KERNEL_ONLY
            )[1]
            out[:, :, ky, kx] = block[:, :, : len(range(shape[2])[ky]), : len(range(shape[3])[kx])]
    return out


class _Part(NamedTuple):
    """The taps along one axis that read the same pixels: those with one remainder."""

    remainder: int
    blocks: list[tuple[int, slice]]  # q of the middle tap of each block of three, and the places of its taps

    @property
    def reach(self) -> int:
        """Pixels that blocks read to either side."""
        return max(abs(q) + 1 for q, _ in self.blocks)


def _parts(kernel: int, stride: int, padding: int) -> list[_Part]:
    parts = []
    for remainder in range(stride):
        taps = range((remainder + padding) % stride, kernel, stride)
        blocks = [
            ((taps[i] - padding) // stride + 1, slice(taps[i], taps[i] + _SIDE * stride, stride))
            for i in range(0, len(taps), _SIDE)
        ]
        if blocks:
            parts.append(_Part(remainder, blocks))
    return parts


class _Canvas(NamedTuple):
    """Images one below the other, with zeros around each, and before the first and after the last."""

    images: int
    height: int  # of an image with its zeros
    width: int
    channels: int
    margin: int  # pixels

    @classmethod
    def of(cls, gradient: Tensor, x: Tensor, window: Window, below: int, beside: int) -> "_Canvas":
        """For an output's gradient and every s-th pixel of the input, moved by less than so many rows and columns."""
        n, c = x.shape[:2]
        sides = zip(gradient.shape[2:], x.shape[2:], window.stride, strict=True)
        height, width = (max(out, -(-size // stride)) for out, size, stride in sides)
        return cls(n, height + below, width + beside, c, below * (width + beside) + beside)

    def filled(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, " numbers"]:
        """The memory of a canvas with these maps."""
        pixels = self.images * self.height * self.width
        memory = torch.empty((pixels + 2 * self.margin) * self.channels, dtype=torch.float32, device=maps.device)
        before, inner, after = memory.split([n * self.channels for n in (self.margin, pixels, self.margin)])
        places = inner.view(self.images, self.height, self.width, self.channels)
        down, across = 1 + maps.shape[2], 1 + maps.shape[3]
        places[:, 1:down, 1:across] = maps.permute(0, 2, 3, 1)
        for zeros in (before, after, places[:, 0], places[:, down:], places[:, :, 0], places[:, :, across:]):
            zeros.zero_()
        return memory

    def view(self, memory: Float[Tensor, " numbers"], moved: int) -> Float[Tensor, "1 c y x"]:
        """The canvas that begins so many pixels later, channels-last."""
        rows = self.images * self.height
        strides = (rows * self.width * self.channels, 1, self.width * self.channels, self.channels)
        shape = (1, self.channels, rows, self.width)
        return memory.as_strided(shape, strides, (self.margin + moved) * self.channels)
