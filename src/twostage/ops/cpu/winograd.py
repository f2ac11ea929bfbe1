"""3 x 3 convolutions by Winograd's minimal filtering, F(4 x 4, 3 x 3): a quarter of the multiplications.

Lavin and Gray 2016 (Fast Algorithms for Convolutional Neural Networks), section 4.1: tiles of 6 x 6 pixels, which
overlap by two, and the kernels are transformed, multiplied and transformed back to 4 x 4 outputs,

    Y = A' [(G g G') * (B' d B)] A

summed over channels between the brackets: 36 matrix products, one for each place of a tile, as one batched product.
_B' d B is the product of the 36 pixels of a tile with one matrix, B' (x) B', and so is A' ... A: all transforms are
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

G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
G += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_B += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

IN, OUT = 6, 4  # pixels along a side of an input tile, and of its outputs
PLACES = IN * IN
ONES = IN + 1  # the place of a tile that A' ... A spreads evenly over all outputs: a bias needs no more
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
        n, _, h, w = x.shape
        d = self.weight.shape[2]
        pixels = x.permute(0, 2, 3, 1)
        out = empty((n, h, w, d), x.dtype) if add is None else add.permute(0, 2, 3, 1)
        tiles = Tiles(pixels, band_of(x.shape, _BAND))
        products = empty((PLACES, tiles.count, d), x.dtype)
        results = Results(out, tiles.band)
        for image in range(0, n, tiles.band.images):
            for row in range(0, -(-h // OUT), tiles.band.rows):
                tiles.load(image, row)
                torch.bmm(tiles.transform(), self.weight, out=products)
                if self.bias is not None:
                    products[ONES] += self.bias
                y, part = results.of(products, image, row)
                if add is not None:
                    activate(part.add_(y), activation)
                elif activation == "relu":
                    torch.clamp_min(y, 0, out=part)
                else:
                    activate(part.copy_(y), activation)
        return out.permute(0, 3, 1, 2)


class Band(NamedTuple):
    """The tiles that are processed together: rows of some images."""

    images: int
    rows: int
    across: int


class Tiles:
    """The tiles of some images, band by band."""

    def __init__(self, pixels: Float[Tensor, "n h w c"], band: Band) -> None:
        self.pixels = pixels
        self.band = band
        self.count = band.images * band.rows * band.across
        c, dtype = pixels.shape[3], pixels.dtype
        self._padded = pixels.new_zeros(band.images, OUT * band.rows + 2, OUT * band.across + 2, c)
        self._windows = self._padded.unfold(1, IN, OUT).unfold(2, IN, OUT).permute(4, 5, 0, 1, 2, 3)
        self.loaded = empty((PLACES, self.count, c), dtype)
        self._transformed = empty(self.loaded.shape, dtype)
        self._matrix = along_both_sides(_B, dtype)

    def load(self, image: int, row: int) -> None:
        """Read the band that begins there; what the last band has beyond the images is 0."""
        some = self.pixels[image : image + self.band.images]
        fill(self._padded[: len(some)], some, OUT * row - 1)
        self._padded[len(some) :] = 0
        self.loaded.view(self._windows.shape).copy_(self._windows)

    def transform(self) -> Float[Tensor, "36 t c"]:
        """B' d B of every tile d; overwritten for the next band."""
        torch.mm(self._matrix, self.loaded.flatten(1), out=self._transformed.flatten(1))
        return self._transformed


class Results:
    """The results of all bands, in their places."""

    def __init__(self, out: Float[Tensor, "n h w d"], band: Band) -> None:
        self.out = out
        self.band = band
        self._pixels = empty((OUT, OUT, *band, out.shape[3]), out.dtype)
        self._matrix = along_both_sides(A, out.dtype)

    def of(self, products: Float[Tensor, "36 t d"], image: int, row: int) -> tuple[Tensor, Tensor]:
        """A' m A of the products m of a band, overwritten for the next one, and the part of `out` for it, alike."""
        torch.mm(self._matrix, products.flatten(1), out=self._pixels.view(OUT * OUT, -1))
        images, rows, across = self.band
        part = self.out[image : image + images, OUT * row : OUT * (row + rows)]
        y = self._pixels[:, :, : len(part)].permute(2, 3, 0, 4, 1, 5)
        if part.shape[1:3] == (OUT * rows, OUT * across):
            return y, part.unflatten(2, (across, OUT)).unflatten(1, (rows, OUT))
        return y.flatten(3, 4).flatten(1, 2)[:, : part.shape[1], : part.shape[2]], part


def band_of(shape: Sequence[int], numbers: int) -> Band:
    """The tiles of an input [n, c, h, w] whose outputs are so many numbers, or one row of one image."""
    n, c, h, w = shape
    down, across = -(-h // OUT), -(-w // OUT)
    fit = max(1, numbers // (OUT * OUT * c))  # tiles
    rows = min(down, max(1, fit // across))
    # Several images where all of each fits; bands of equal height.
    return Band(max(1, min(n, fit // (down * across))), -(-down // -(-down // rows)), across)


def suits(weight: Float[Tensor, "d c k l"], window: Window) -> bool:
    """Whether a convolution can be computed so."""
    return weight.dtype == torch.float32 and weight.shape[2:] == (3, 3) and window == Window(padding=(1, 1))


def is_exact() -> bool:
    """Whether torch's matrix products are those of float32: Winograd's transforms make rounding larger."""
    return torch.get_float32_matmul_precision() == "highest"


def transformed(weight: Float[Tensor, "d c 3 3"], dtype: torch.dtype = torch.float64) -> Float[Tensor, "36 c d"]:
    """G g G' of every kernel g, worked out in this dtype."""
    kernels = weight.permute(2, 3, 1, 0).reshape(9, -1)
    twice = along_both_sides(G, dtype)
    # A few at a time: float64 is large.
    few = [(twice @ some.to(dtype)).to(weight.dtype) for some in kernels.split(1 << 18, dim=1)]
    return torch.cat(few, dim=1).view(PLACES, weight.shape[1], weight.shape[0])


def along_both_sides(matrix: list[list[float]] | list[list[int]], dtype: torch.dtype) -> Float[Tensor, "_ _"]:
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
