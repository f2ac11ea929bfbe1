"""The 3 x 3 convolution of `ops.cpu.winograd` in training: with its gradients, by the same minimal filtering.

The gradient in the input is the convolution of the output's gradient with the kernels turned by 180 degrees. That in
the kernels follows from Y = A' [(G g G') * (B' d B)] A by the chain rule (Lavin and Gray 2016, section 4.1):

    dg = G' [sum over tiles of (B' d B) * (A dY A')] G

again 36 matrix products, of which each tile adds to the sums. Bands of tiles are read once for both gradients.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from twostage.ops.cpu.memory import empty
from twostage.ops.cpu.winograd import (
    IN,
    OUT,
    PLACES,
    A,
    G,
    Results,
    Tiles,
    WinogradConv,
    along_both_sides,
    band_of,
    transformed,
)

_BAND = 1 << 19  # numbers of a band before it is transformed: there are bands of two maps


def winograd_conv(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None
) -> Float[Tensor, "n d h w"]:
    """The convolution with padding 1, differentiable once in all three."""
    out: Tensor = _Convolution.apply(x, weight, bias)
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # `data`: a view that a function made may not be changed in place by the activation that follows.
        return WinogradConv(transformed(weight, weight.dtype), bias)(x).data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_x, of_weight = _gradients(gradient, x, weight, needs_x=needs_x, needs_weight=needs_weight)
        return of_x, of_weight, gradient.sum((0, 2, 3)) if needs_bias else None


def _gradients(
    gradient: Float[Tensor, "n d h w"],
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "d c 3 3"],
    *,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Float[Tensor, "n c h w"] | None, Float[Tensor, "d c 3 3"] | None]:
    n, c, h, w = x.shape
    band = band_of((n, max(len(weight), c), h, w), _BAND)
    of_out = Tiles(gradient.permute(0, 2, 3, 1), band)
    to_x = _InputGradient(weight, x, of_out) if needs_x else None
    to_weight = _WeightGradient(weight, x, of_out) if needs_weight else None
    for image in range(0, n, band.images):
        for row in range(0, -(-h // OUT), band.rows):
            of_out.load(image, row)
            for part in (to_x, to_weight):
                if part is not None:
                    part.add_band(image, row)
    return (to_x.result if to_x else None), (to_weight.result if to_weight else None)


class _InputGradient:
    """The convolution of the output's gradient with the turned kernels, band by band."""

    def __init__(self, weight: Tensor, x: Tensor, of_out: Tiles) -> None:
        n, c, h, w = x.shape
        self.of_out = of_out
        self._kernels = transformed(weight.flip(2, 3).transpose(0, 1), weight.dtype)
        self._products = empty((PLACES, of_out.count, c), x.dtype)
        self._results = Results(empty((n, h, w, c), x.dtype), of_out.band)

    def add_band(self, image: int, row: int) -> None:
        torch.bmm(self.of_out.transform(), self._kernels, out=self._products)
        y, part = self._results.of(self._products, image, row)
        part.copy_(y)

    @property
    def result(self) -> Float[Tensor, "n c h w"]:
        return self._results.out.permute(0, 3, 1, 2)


class _WeightGradient:
    """The sums over tiles for the kernels' gradient, band by band."""

    def __init__(self, weight: Tensor, x: Tensor, of_out: Tiles) -> None:
        self.of_out = of_out
        self.weight = weight
        self._tiles = Tiles(x.permute(0, 2, 3, 1), of_out.band)
        d, c = weight.shape[:2]
        # The outputs of a tile are the inner pixels of the one that is read for the gradient in the input.
        self._inner = of_out.loaded.view(IN, IN, of_out.count, d)[1 : 1 + OUT, 1 : 1 + OUT]
        self._pixels = empty(self._inner.shape, x.dtype)
        self._transformed = empty((PLACES, of_out.count, d), x.dtype)
        self._matrix = along_both_sides(A, x.dtype).t().contiguous()
        self._sums = x.new_zeros(PLACES, c, d)

    def add_band(self, image: int, row: int) -> None:
        self._pixels.copy_(self._inner)
        torch.mm(self._matrix, self._pixels.view(OUT * OUT, -1), out=self._transformed.flatten(1))
        self._tiles.load(image, row)
        self._sums.baddbmm_(self._tiles.transform().transpose(1, 2), self._transformed)

    @property
    def result(self) -> Float[Tensor, "d c 3 3"]:
        d, c = self.weight.shape[:2]
        back = along_both_sides(G, self._sums.dtype).t() @ self._sums.flatten(1)
        return back.view(3, 3, c, d).permute(3, 2, 0, 1)
