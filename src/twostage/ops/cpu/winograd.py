"""3 x 3 convolutions by Winograd's minimal filtering, F(4 x 4, 3 x 3): a quarter of the multiplications.

Lavin and Gray 2016 (Fast Algorithms for Convolutional Neural Networks), section 4.1: tiles of 6 x 6 pixels, which
overlap by two, and the kernels are transformed, multiplied and transformed back to 4 x 4 outputs,

    Y = A' [(G g G') * (B' d B)] A

summed over channels between the brackets: 36 matrix products, one for each place of a tile, as one batched product
(`BatchedProduct`) or as one grouped 1 x 1 convolution of oneDNN (`GroupedProduct`). Tiles are transformed along y,
where neighbours in a row still share their pixels, then along x, and processed in bands that fit the cache. Rounding
errors are some ten times those of the plain sum, 1e-5 of the largest output: only for float32.

Letters: n images, c channels in, d channels out; a band holds r rows of a tiles of m images.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.ops.cpu.memory import empty
from twostage.ops.cpu.packed import PackedConv
from twostage.ops.plain import Activation, Conv, Window, activate

_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
_G += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]

_IN, _OUT = 6, 4  # pixels along a side of an input tile, and of its outputs
_ONES = _IN + 1  # the place of a tile that A' ... A spreads evenly over all outputs: a bias needs no more
_BAND = 1 << 19  # numbers of a band before it is transformed, 2 MB
_TILES = 128  # of a band of 256 channels
_CHANNELS = 256  # out, of one grouped convolution: with more the packed layout depends on the number of tiles


class Product(Protocol):
    """The 36 matrix products of a band of tiles, in the memory layout that suits them."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Out, of each result."""
        ...

    def tiles(self, m: int, r: int, a: int, c: int, dtype: torch.dtype) -> Float[Tensor, "m r a 6 6 c"]:
        """Memory for transformed tiles."""
        ...

    def __call__(self, tiles: Float[Tensor, "m r a 6 6 c"]) -> Sequence[Callable[[], Tensor]]:
        """The products, so many channels out at a time: each is computed when it is called."""
        ...


class BatchedProduct(NamedTuple):
    """`torch.bmm`: the tiles of a band are one matrix for each place. The time is that of matrix products anywhere."""

    weight: Float[Tensor, "36 c d"]
    bias: Float[Tensor, " d"] | None

    @classmethod
    def of(cls, weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None) -> "BatchedProduct":
        """Transform the kernels."""
        return cls(transformed(weight).mT.contiguous(), bias)

    @property
    def channels(self) -> tuple[int, ...]:
        """All at once."""
        return (self.weight.shape[2],)

    def tiles(self, m: int, r: int, a: int, c: int, dtype: torch.dtype) -> Float[Tensor, "m r a 6 6 c"]:
        """Memory with the place first."""
        return empty((_IN, _IN, m, r, a, c), dtype).permute(2, 3, 4, 0, 1, 5)

    def __call__(self, tiles: Float[Tensor, "m r a 6 6 c"]) -> Sequence[Callable[[], Tensor]]:
        """See `Product`."""
        m, r, a, _, _, c = tiles.shape
        d = self.weight.shape[2]
        out = empty((_IN * _IN, m * r * a, d), tiles.dtype)

        def product() -> Tensor:
            torch.bmm(tiles.permute(3, 4, 0, 1, 2, 5).view(_IN * _IN, -1, c), self.weight, out=out)
            if self.bias is not None:
                out[_ONES] += self.bias
            return out.view(_IN, _IN, m, r, a, d).permute(2, 3, 4, 0, 1, 5)

        return [product]


class GroupedProduct(NamedTuple):
    """Grouped 1 x 1 convolutions by oneDNN, from packed weights: [m, 36 c, r a, 1] to [m, 36 d, r a, 1].

    Faster than `BatchedProduct` where oneDNN's layout serves every number of tiles, ten times slower where it does not.
    """

    convs: tuple[Conv, ...]
    channels: tuple[int, ...]

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "d c 3 3"],
        bias: Float[Tensor, " d"] | None,
        pack: Callable[[Tensor, Tensor | None, Window], Conv] | None = None,
    ) -> "GroupedProduct":
        """Transform the kernels; `pack` makes the grouped convolution of them, by default oneDNN's."""
        pack = pack or partial(PackedConv.of, like=(_TILES, 1))
        convs, channels = [], []
        for start in range(0, len(weight), _CHANNELS):
            kernels = transformed(weight[start : start + _CHANNELS])
            shift = None
            if bias is not None:
                shift = bias.new_zeros(kernels.shape[:2])
                shift[_ONES] = bias[start : start + _CHANNELS]
                shift = shift.flatten()
            convs.append(pack(kernels.flatten(0, 1)[:, :, None, None], shift, Window(groups=_IN * _IN)))
            channels.append(kernels.shape[1])
        return cls(tuple(convs), tuple(channels))

    def tiles(self, m: int, r: int, a: int, c: int, dtype: torch.dtype) -> Float[Tensor, "m r a 6 6 c"]:
        """Memory with the place beside the channel."""
        return empty((m, r, a, _IN, _IN, c), dtype)

    def __call__(self, tiles: Float[Tensor, "m r a 6 6 c"]) -> Sequence[Callable[[], Tensor]]:
        """See `Product`."""
        m, r, a = tiles.shape[:3]
        places = tiles.view(m, r * a, 1, -1).permute(0, 3, 1, 2)

        def product(conv: Conv) -> Tensor:
            return conv(places).permute(0, 2, 3, 1).view(m, r, a, _IN, _IN, -1)

        return [partial(product, conv) for conv in self.convs]


class WinogradConv(NamedTuple):
    """A 3 x 3 convolution of stride 1 and padding 1."""

    product: Product

    def __call__(
        self,
        x: Float[Tensor, "n c h w"],
        activation: Activation = "none",
        add: Float[Tensor, "n d h w"] | None = None,
    ) -> Float[Tensor, "n d h w"]:
        """`activation(conv(x) + bias + add)`; the result takes the memory of `add`."""
        n, c, h, w = x.shape
        channels = self.product.channels
        pixels = x.permute(0, 2, 3, 1)
        out = empty((n, h, w, sum(channels)), x.dtype) if add is None else add.permute(0, 2, 3, 1)
        down, across = -(-h // _OUT), -(-w // _OUT)
        fit = max(1, _BAND // (_OUT * _OUT * c))  # tiles
        rows = min(down, max(1, fit // across))  # of tiles in a band
        rows = -(-down // -(-down // rows))  # of equal bands
        images = max(1, min(n, fit // (down * across)))  # several, where all of each fits
        band = x.new_zeros(images, _OUT * rows + 2, _OUT * across + 2, c)
        half = empty((images, rows, _IN, _OUT * across + 2, c), x.dtype)
        tiles = self.product.tiles(images, rows, across, c, x.dtype)
        half_out = empty((images, rows, across, _IN, _OUT, max(channels)), x.dtype)
        pixels_out = empty((images, rows, _OUT, across, _OUT, max(channels)), x.dtype)
        products = self.product(tiles)
        for image in range(0, n, images):
            for row in range(0, down, rows):
                top, some = _OUT * row, min(images, n - image)
                _fill(band[:some], pixels[image : image + some], top - 1)
                _to_tiles(_windows(band, 1, rows), half.unbind(2))
                _to_tiles(_windows(half.transpose(2, 3), 2, across), tiles.unbind(4))
                parts = out[image : image + some, top : top + _OUT * rows].split(channels, dim=3)
                for product, part in zip(products, parts, strict=True):
                    y = _to_pixels(product(), half_out, pixels_out)[:some, : part.shape[1], :w]
                    if add is not None:
                        y.add_(part)
                    if activation == "relu":
                        torch.clamp_min(y, 0, out=part)
                    else:
                        part.copy_(activate(y, activation))
        return out.permute(0, 3, 1, 2)


def suits(weight: Float[Tensor, "d c k l"], window: Window) -> bool:
    """Whether a convolution can be computed so."""
    return weight.dtype == torch.float32 and weight.shape[2:] == (3, 3) and window == Window(padding=(1, 1))


def transformed(weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "36 d c"]:
    """G g G' of every kernel g, worked out in float64."""
    g = torch.tensor(_G, dtype=torch.float64)
    kernels = weight.permute(2, 3, 0, 1).reshape(9, -1)
    # A few at a time: float64 is large.
    few = [(torch.kron(g, g) @ some.double()).to(weight.dtype) for some in kernels.split(1 << 18, dim=1)]
    return torch.cat(few, dim=1).view(_IN * _IN, *weight.shape[:2])


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
