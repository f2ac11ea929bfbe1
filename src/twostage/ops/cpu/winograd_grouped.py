"""Winograd's 3 x 3 convolution (`ops.cpu.winograd`) with its 36 matrix products as a grouped convolution of oneDNN.

On some CPUs that is twice as fast as a batched product. On others its packed weights are laid out anew in every call
for most numbers of tiles, at thirty times the cost. Tiles are transformed by sums, along y, where neighbours in a row
still share their pixels, then along x.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.ops.cpu.memory import empty
from twostage.ops.cpu.packed import PackedConv
from twostage.ops.cpu.winograd import IN, ONES, OUT, band_of, fill, transformed
from twostage.ops.plain import Activation, Conv, Window, activate

BAND = 1 << 19  # numbers of a band before it is transformed, 2 MB
_TILES = 128  # of a band of 256 channels
_CHANNELS = 256  # out, of one product: with more the packed layout depends on the number of tiles


class GroupedWinogradConv(NamedTuple):
    """A 3 x 3 convolution of stride 1 and padding 1 with its kernels transformed."""

    products: tuple[Conv, ...]  # [m, 36 c, r a, 1] to [m, 36 d, r a, 1], for so many channels each
    channels: tuple[int, ...]

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "d c 3 3"],
        bias: Float[Tensor, " d"] | None,
        pack: Callable[[Tensor, Tensor | None, Window], Conv] | None = None,
    ) -> "GroupedWinogradConv":
        """Transform the kernels; `pack` makes the grouped convolution of them, by default oneDNN's."""
        pack = pack or partial(PackedConv.of, like=(_TILES, 1))
        products, channels = [], []
        for start in range(0, len(weight), _CHANNELS):
            kernels = transformed(weight[start : start + _CHANNELS]).mT
            shift = None if bias is None else _at_ones(bias[start : start + _CHANNELS])
            products.append(pack(kernels.flatten(0, 1)[:, :, None, None], shift, Window(groups=IN * IN)))
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
        images, rows, across = band_of(x.shape, BAND)
        band = x.new_zeros(images, OUT * rows + 2, OUT * across + 2, c)
        half = empty((images, rows, IN, OUT * across + 2, c), x.dtype)
        tiles = empty((images, rows, across, IN, IN, c), x.dtype)
        half_out = empty((images, rows, across, IN, OUT, max(self.channels)), x.dtype)
        pixels_out = empty((images, rows, OUT, across, OUT, max(self.channels)), x.dtype)
        for image in range(0, n, images):
            for row in range(0, -(-h // OUT), rows):
                top, some = OUT * row, min(images, n - image)
                fill(band[:some], pixels[image : image + some], top - 1)
                _to_tiles(_windows(band, 1, rows), half.unbind(2))
                _to_tiles(_windows(half.transpose(2, 3), 2, across), tiles.unbind(4))
                places = tiles.view(images, rows * across, 1, -1).permute(0, 3, 1, 2)
                parts = out[image : image + some, top : top + OUT * rows].split(self.channels, dim=3)
                for product, part in zip(self.products, parts, strict=True):
                    y = product(places).permute(0, 2, 3, 1).view(images, rows, across, IN, IN, -1)
                    y = _to_pixels(y, half_out, pixels_out)[:some, : part.shape[1], :w]
                    if add is not None:
                        y.add_(part)
                    if activation == "relu":
                        torch.clamp_min(y, 0, out=part)
                    else:
                        part.copy_(activate(y, activation))
        return out.permute(0, 3, 1, 2)


def _windows(band: Tensor, dim: int, count: int) -> list[Tensor]:
    """The first pixel of each tile along an axis, the second, ... the sixth."""
    return [band.narrow(dim, i, OUT * count - 3)[(slice(None),) * dim + (slice(None, None, OUT),)] for i in range(IN)]


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
    return pixels.reshape(m, OUT * r, OUT * a, d)


def _at_ones(bias: Float[Tensor, " d"]) -> Float[Tensor, " _"]:
    """The bias as one of the products."""
    spread = bias.new_zeros(IN * IN, len(bias))
    spread[ONES] = bias
    return spread.flatten()
