"""3 x 3 convolutions by Winograd's minimal filtering, F(4 x 4, 3 x 3): a quarter of the multiplications.

Lavin and Gray 2016 (Fast Algorithms for Convolutional Neural Networks), section 4.1: tiles of 6 x 6 pixels, which
overlap by two, and the kernels are transformed, multiplied and transformed back to 4 x 4 outputs,

    Y = A' [(G g G') * (B' d B)] A

summed over channels between the brackets: 36 matrix products. Each transform is one matrix product too, with the
Kronecker square of its matrix. Tiles are worked off in bands that fit the cache. Rounding errors are some ten times
those of the plain sum, 1e-5 of the largest output: for float32 alone.

Letters: n images, c channels in, d channels out, t tiles.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.ops.activation import Activation, activate

_B = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
_G += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

_IN, _OUT = 6, 4  # pixels along a tile, and along what it yields
_TILES = 96  # of a band: with 256 channels 3.5 MB, transformed


class WinogradConv(NamedTuple):
    """A 3 x 3 convolution of stride 1 and padding 1 with its kernels transformed."""

    kernels: Float[Tensor, "36 c d"]
    bias: Float[Tensor, " d"] | None

    @classmethod
    def of(cls, weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None) -> "WinogradConv":
        """Transform the kernels, in float64."""
        g = torch.tensor(_G, dtype=torch.float64)
        kernels = torch.einsum("ai,bj,dcij->abcd", g, g, weight.double()).flatten(0, 1)
        return cls(kernels.to(weight.dtype).contiguous(), bias)

    def __call__(
        self,
        x: Float[Tensor, "n c h w"],
        activation: Activation = "none",
        add: Float[Tensor, "n d h w"] | None = None,
    ) -> Float[Tensor, "n d h w"]:
        """`activation(conv(x) + bias + add)`; the result takes the memory of `add`."""
        n, c, h, w = x.shape
        d = self.kernels.shape[2]
        pixels = x.permute(0, 2, 3, 1)
        out = x.new_empty(n, h, w, d) if add is None else add.permute(0, 2, 3, 1)
        down, across = -(-h // _OUT), -(-w // _OUT)
        rows = min(down, max(1, _TILES // across))  # of tiles in a band
        images = min(n, max(1, _TILES // (down * across)))  # several, where all of each fits
        band = x.new_zeros(images, _OUT * rows + 2, _OUT * across + 2, c)
        to_tiles, to_pixels = _square(_B, x), _square(_A, x)
        for image in range(0, n, images):
            for row in range(0, down, rows):
                top, some = _OUT * row, min(images, n - image)
                _fill(band[:some], pixels[image : image + some], top - 1)
                tiles = band[:some].unfold(1, _IN, _OUT).unfold(2, _IN, _OUT).permute(4, 5, 0, 1, 2, 3)
                tiles = (to_tiles @ tiles.reshape(_IN * _IN, -1)).view(_IN * _IN, -1, c)
                found = (to_pixels @ torch.bmm(tiles, self.kernels).view(_IN * _IN, -1)).view(_OUT, _OUT, -1, across, d)
                found = found.permute(2, 0, 3, 1, 4).reshape(some, _OUT * rows, _OUT * across, d)
                part = out[image : image + some, top : top + _OUT * rows]
                found = found[:, : part.shape[1], :w]
                if self.bias is not None:
                    found += self.bias
                part.copy_(activate(found if add is None else found.add_(part), activation))
        return out.permute(0, 3, 1, 2)


def suits(weight: Float[Tensor, "d c k l"], stride: tuple[int, int], padding: tuple[int, int], groups: int) -> bool:
    """Whether a convolution can be done this way, and gains by it: with fewer channels the transforms cost too much."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and (stride, padding, groups) == ((1, 1), (1, 1), 1)
        and min(weight.shape[:2]) >= 128
    )


def _fill(band: Float[Tensor, "m r s c"], pixels: Float[Tensor, "m h w c"], top: int) -> None:
    """The rows of the images from `top` on, with zeros beyond them; the columns beyond are 0 already."""
    height, width = pixels.shape[1:3]
    first, last = max(top, 0), min(top + band.shape[1], height)
    band[:, : first - top] = 0
    band[:, first - top : last - top, 1 : width + 1] = pixels[:, first:last]
    band[:, last - top :] = 0


def _square(matrix: list[list[float]] | list[list[int]], like: Tensor) -> Tensor:
    """The Kronecker square: the transform of both axes of a tile at once."""
    factor = torch.tensor(matrix, dtype=like.dtype)
    return torch.kron(factor, factor)
