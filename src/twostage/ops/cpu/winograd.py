"""3 x 3 convolutions by Winograd's minimal filtering, F(4 x 4, 3 x 3): a quarter of the multiplications.

Lavin and Gray 2016 (Fast Algorithms for Convolutional Neural Networks), section 4.1: tiles of 6 x 6 pixels, which
overlap by two, and the kernels are transformed, multiplied and transformed back to 4 x 4 outputs,

    Y = A' [(G g G') * (B' d B)] A

summed over channels between the brackets: 36 matrix products, one for each place of a tile, which are one grouped 1 x 1
convolution. Tiles are transformed along y, where neighbours in a row still share their pixels, then along x, and
processed in bands that fit the cache. Rounding errors are some ten times those of the plain sum, 1e-5 of the largest
output: only for float32.

Letters: n images, c channels in, d channels out; a band holds r rows of a tiles of m images.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.ops.cpu.memory import empty, release_freed_memory
from twostage.ops.cpu.packed import PackedConv
from twostage.ops.plain import Activation, Conv, Window, activate

_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
_G += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]

_IN, _OUT = 6, 4  # pixels along a side of an input tile, and of its outputs
_ONES = _IN + 1  # the place of a tile that A' ... A spreads evenly over all outputs: a bias needs no more
_BAND = 1 << 19  # numbers of a band before it is transformed, 2 MB
_TILES = 128  # of a band of 256 channels
_LARGE = 4096  # pixels of all maps of a batch from which on the speed is worth the memory
_CHANNELS = 256  # out, of one product: with more the packed layout depends on the number of tiles


class WinogradConv(NamedTuple):
    """A 3 x 3 convolution of stride 1 and padding 1 with its kernels transformed."""

    products: tuple[Conv, ...]  # [m, 36 c, r a, 1] to [m, 36 d, r a, 1], for so many channels each
    channels: tuple[int, ...]

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "d c 3 3"],
        bias: Float[Tensor, " d"] | None,
        pack: Callable[[Tensor, Tensor | None, Window], Conv] | None = None,
    ) -> "WinogradConv":
        """Transform the kernels, in float64; `pack` makes the grouped convolution of them, by default oneDNN's."""
        pack = pack or partial(PackedConv.of, like=(_TILES, 1))
        products, channels = [], []
        for start in range(0, len(weight), _CHANNELS):
            some = slice(start, start + _CHANNELS)
            kernels = torch.cat([_transformed(few) for few in weight[some].split(64)], dim=1)  # float64 is large
            shift = None if bias is None else _at_ones(bias[some])
            products.append(pack(kernels.flatten(0, 1)[:, :, None, None], shift, Window(groups=_IN * _IN)))
            channels.append(kernels.shape[1])
        return cls(tuple(products), tuple(channels))

    def __call__(
        self,
        x: Float[Tensor, "n c h w"],
        activation: Activation = "none",
        add: Float[Tensor, "n d h w"] | None = None,
    ) -> Float[Tensor, "n d h w"]:
        """`activation(conv(x) + bias + add)`; the result takes the memory of `add`."""
        n, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1)
        out = empty((n, h, w, sum(self.channels)), x.dtype) if add is None else add.permute(0, 2, 3, 1)
        down, across = -(-h // _OUT), -(-w // _OUT)
        fit = max(1, _BAND // (_OUT * _OUT * c))  # tiles
        rows = min(down, max(1, fit // across))  # of tiles in a band
        images = max(1, min(n, fit // (down * across)))  # several, where all of each fits
        band = x.new_zeros(images, _OUT * rows + 2, _OUT * across + 2, c)
        half = empty((images, rows, _IN, _OUT * across + 2, c), x.dtype)
        tiles = empty((images, rows, across, _IN, _IN, c), x.dtype)
        half_out = empty((images, rows, across, _IN, _OUT, max(self.channels)), x.dtype)
        pixels_out = empty((images, rows, _OUT, across, _OUT, max(self.channels)), x.dtype)
        for image in range(0, n, images):
            for row in range(0, down, rows):
                top, some = _OUT * row, min(images, n - image)
                _fill(band[:some], pixels[image : image + some], top - 1)
                _to_tiles(_windows(band, 1, rows), half.unbind(2))
                _to_tiles(_windows(half.transpose(2, 3), 2, across), tiles.unbind(4))
                places = tiles.view(images, rows * across, 1, -1).permute(0, 3, 1, 2)
                parts = out[image : image + some, top : top + _OUT * rows].split(self.channels, dim=3)
                for product, part in zip(self.products, parts, strict=True):
                    y = product(places).permute(0, 2, 3, 1).view(images, rows, across, _IN, _IN, -1)
                    y = _to_pixels(y, half_out, pixels_out)[:some, : part.shape[1], :w]
                    if add is not None:
                        y.add_(part)
                    if activation == "relu":
                        torch.clamp_min(y, 0, out=part)
                    else:
                        part.copy_(activate(y, activation))
        return out.permute(0, 3, 1, 2)


class BySize:
    """A 3 x 3 convolution: direct for small maps, by Winograd's minimal filtering for large ones.

    The transformed kernels take four times the memory: they are made at the first large map.
    """

    def __init__(self, weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None, window: Window) -> None:
        self.direct = PackedConv.of(weight, bias, window)
        self._filtered: WinogradConv | None = None

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d h w"] | None = None
    ) -> Float[Tensor, "n d h w"]:
        """See `packed.Conv`."""
        if x.shape[0] * x.shape[2] * x.shape[3] < _LARGE:
            return self.direct(x, activation, add)
        if self._filtered is None:
            self._filtered = WinogradConv.of(self.direct.weight.to_dense(), self.direct.bias)
            release_freed_memory()
        return self._filtered(x, activation, add)


def suits(weight: Float[Tensor, "d c k l"], window: Window) -> bool:
    """Whether a convolution can be computed so, and faster: with few channels the transforms cost too much."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and window == Window(padding=(1, 1))
        and min(weight.shape[:2]) >= 128
    )


def _transformed(weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "36 d c"]:
    g = torch.tensor(_G, dtype=torch.float64)
    return torch.einsum("ai,bj,dcij->abdc", g, g, weight.double()).flatten(0, 1).to(weight.dtype)


def _fill(band: Float[Tensor, "m y x c"], pixels: Float[Tensor, "m h w c"], top: int) -> None:
    """The rows of the images from `top` on, with zeros beyond them; the columns beyond are 0 already."""
    height, width = pixels.shape[1:3]
    first, last = max(top, 0), min(top + band.shape[1], height)
    band[:, : first - top] = 0
    band[:, first - top : last - top, 1 : width + 1] = pixels[:, first:last]
    band[:, last - top :] = 0


def _windows(band: Tensor, dim: int, count: int) -> list[Tensor]:
    """The first pixel of each tile along an axis, the second, ... the sixth."""
    return [
        band.narrow(dim, i, _OUT * count - 3)[(slice(None),) * dim + (slice(None, None, _OUT),)] for i in range(_IN)
    ]


def _to_tiles(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """B' along one axis: 4 d0 - 5 d2 + d4, (d4 - 4 d2) +- (d3 - 4 d1), (d4 - d2) +- 2 (d3 - d1), 4 d1 - 5 d3 + d5."""
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.add(even, d[0] - d[2], alpha=4, out=out[0])
    torch.sub(d[5] - d[3], odd, alpha=4, out=out[5])


def _from_tiles(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """A' along one axis: with p, q = m1 +- m2 and r, s = m3 +- m4: m0 + p + r, q + 2 s, p + 4 r, q + 8 s + m5."""
    p, q, r, s = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    torch.add(q, s, alpha=2, out=out[1])
    torch.add(p, r, alpha=4, out=out[2])
    torch.add(p.add_(m[0]), r, out=out[0])
    torch.add(q.add_(m[5]), s, alpha=8, out=out[3])


def _to_pixels(
    tiles: Float[Tensor, "m r a 6 6 d"], half: Float[Tensor, "m r a 6 4 e"], pixels: Float[Tensor, "m r 4 a 4 e"]
) -> Float[Tensor, "m y x d"]:
    """A' ... A: the pixels of all tiles beside each other, in memory for at least as many channels."""
    m, r, a, _, _, d = tiles.shape
    half, pixels = half[..., :d], pixels[..., :d]
    _from_tiles(tiles.unbind(4), half.unbind(4))
    _from_tiles(half.unbind(3), pixels.unbind(2))
    return pixels.reshape(m, _OUT * r, _OUT * a, d)


def _at_ones(bias: Float[Tensor, " d"]) -> Float[Tensor, " _"]:
    """The bias as one of the products."""
    spread = bias.new_zeros(_IN * _IN, len(bias))
    spread[_ONES] = bias
    return spread.flatten()
