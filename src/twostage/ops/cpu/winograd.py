"""3 x 3 convolutions by Winograd's minimal filtering, F(4 x 4, 3 x 3): a quarter of the multiplications.

Lavin and Gray 2016 (Fast Algorithms for Convolutional Neural Networks), section 4.1: tiles of 6 x 6 pixels, which
overlap by two, and the kernels are transformed, multiplied and transformed back to 4 x 4 outputs,

    Y = A' [(G g G') * (B' d B)] A

summed over channels between the brackets: 36 matrix products, one for each place of a tile, as one batched product.
B' d B is the product of the 36 pixels of a tile with one matrix, B' (x) B', and so is A' ... A: all transforms are
matrix products. Tiles are processed in bands that fit the cache. Rounding errors are some ten times those of the plain
sum, 1e-5 of the largest output: only for float32.

Letters: n images, c channels in, d channels out; a band holds r rows of a tiles of m images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.ops.cpu.memory import empty
from twostage.ops.plain import Activation, Window, activate

_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
_G += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_B += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

_IN, _OUT = 6, 4  # pixels along a side of an input tile, and of its outputs
_PLACES = _IN * _IN
_ONES = _IN + 1  # the place of a tile that A' ... A spreads evenly over all outputs: a bias needs no more
_BAND = 1 << 20  # numbers of a band before it is transformed, 4 MB


class WinogradConv(NamedTuple):
    """A 3 x 3 convolution of stride 1 and padding 1."""

    weight: Float[Tensor, "36 c d"]  # G g G' of every kernel g
    bias: Float[Tensor, " d"] | None

    @classmethod
    def of(cls, weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None) -> "WinogradConv":
        """Transform the kernels."""
        return cls(transformed(weight), bias)

    def __call__(
        self,
        x: Float[Tensor, "n c h w"],
        activation: Activation = "none",
        add: Float[Tensor, "n d h w"] | None = None,
    ) -> Float[Tensor, "n d h w"]:
        """`activation(conv(x) + bias + add)`; the result takes the memory of `add`."""
        n, c, h, w = x.shape
        d = self.weight.shape[2]
        pixels = x.permute(0, 2, 3, 1)
        out = empty((n, h, w, d), x.dtype) if add is None else add.permute(0, 2, 3, 1)
        images, rows, across = band_of(x.shape, _BAND)
        band = x.new_zeros(images, _OUT * rows + 2, _OUT * across + 2, c)
        windows = band.unfold(1, _IN, _OUT).unfold(2, _IN, _OUT).permute(4, 5, 0, 1, 2, 3)
        tiles, transformed = (empty((_PLACES, images * rows * across, c), x.dtype) for _ in range(2))
        products = empty((_PLACES, images * rows * across, d), x.dtype)
        results = empty((_OUT, _OUT, images, rows, across, d), x.dtype)
        to_tiles, to_pixels = _twice(_B, x.dtype), _twice(_A, x.dtype)
        for image in range(0, n, images):
            for row in range(0, -(-h // _OUT), rows):
                top, some = _OUT * row, min(images, n - image)
                fill(band[:some], pixels[image : image + some], top - 1)
                tiles.view(windows.shape).copy_(windows)
                torch.mm(to_tiles, tiles.flatten(1), out=transformed.flatten(1))
                torch.bmm(transformed, self.weight, out=products)
                if self.bias is not None:
                    products[_ONES] += self.bias
                torch.mm(to_pixels, products.flatten(1), out=results.view(_OUT * _OUT, -1))
                part = out[image : image + some, top : top + _OUT * rows]
                y = results[:, :, :some].permute(2, 3, 0, 4, 1, 5)
                if part.shape[1:3] == (_OUT * rows, _OUT * across):
                    part = part.unflatten(2, (across, _OUT)).unflatten(1, (rows, _OUT))
                else:
                    y = y.flatten(3, 4).flatten(1, 2)[:, : part.shape[1], :w]
                if add is not None:
                    activate(part.add_(y), activation)
                elif activation == "relu":
                    torch.clamp_min(y, 0, out=part)
                else:
                    activate(part.copy_(y), activation)
        return out.permute(0, 3, 1, 2)


def band_of(shape: Sequence[int], numbers: int) -> tuple[int, int, int]:
    """The images, rows and columns of the tiles that are processed together, of an input [n, c, h, w]."""
    n, c, h, w = shape
    down, across = -(-h // _OUT), -(-w // _OUT)
    fit = max(1, numbers // (_OUT * _OUT * c))  # tiles
    rows = min(down, max(1, fit // across))
    # Several images where all of each fits; bands of equal height.
    return max(1, min(n, fit // (down * across))), -(-down // -(-down // rows)), across


def suits(weight: Float[Tensor, "d c k l"], window: Window) -> bool:
    """Whether a convolution can be computed so."""
    return weight.dtype == torch.float32 and weight.shape[2:] == (3, 3) and window == Window(padding=(1, 1))


def transformed(weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "36 c d"]:
    """G g G' of every kernel g, worked out in float64."""
    kernels = weight.permute(2, 3, 1, 0).reshape(9, -1)
    twice = _twice(_G, torch.float64)
    # A few at a time: float64 is large.
    few = [(twice @ some.double()).to(weight.dtype) for some in kernels.split(1 << 18, dim=1)]
    return torch.cat(few, dim=1).view(_PLACES, weight.shape[1], weight.shape[0])


def _twice(matrix: list[list[float]] | list[list[int]], dtype: torch.dtype) -> Float[Tensor, "_ _"]:
    """What applies a matrix along both sides of a tile, on its pixels in reading order."""
    once = torch.tensor(matrix, dtype=dtype)
    return torch.kron(once, once)


def fill(band: Float[Tensor, "m y x c"], pixels: Float[Tensor, "m h w c"], top: int) -> None:
    """The rows of the images from `top` on, with zeros beyond them; the columns beyond are 0 already."""
    height, width = pixels.shape[1:3]
    first, last = max(top, 0), min(top + band.shape[1], height)
    band[:, : first - top] = 0
    band[:, first - top : last - top, 1 : width + 1] = pixels[:, first:last]
    band[:, last - top :] = 0
