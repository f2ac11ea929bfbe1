"""Four ways to see objects of every size, beside each other (FPN, figure 1): a field of the model chooses.

single    (b) one map, anchors of all sizes on it
image     (a) one map of the image at several sizes
levels    (c) the maps of several stages, each by itself
top_down  (d) the feature pyramid network: `backbones.fpn`
"""

from collections.abc import Callable
from typing import Literal, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from twostage.models.backbones.fpn import FPN, Body, EverySecond, neck_conv, with_extra

Kind = Literal["top_down", "levels", "single", "image"]


class Levels(nn.Module):
    """A body whose maps are brought to one width, each by itself; `extra` makes more levels of the coarsest.

    The layers are those of a feature pyramid without its top-down pathway (FPN, table 1, d), so that nothing but that
    pathway tells the two apart.
    """

    def __init__(self, body: nn.Module, width: int, *, extra: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        shape = cast(Body, body)
        self.laterals = nn.ModuleList(neck_conv(c, width, 1, None) for c in shape.channels)
        self.outputs = nn.ModuleList(neck_conv(width, width, 3, None) for _ in shape.channels)
        self.extra = extra
        self.region_strides = shape.strides
        self.strides = with_extra(shape.strides, extra)
        self.channels = (width,) * len(self.strides)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c _ _"], ...]:
        """Maps of equal width, finest first, extra levels last."""
        neck = zip(self.laterals, self.outputs, self.body(x), strict=True)
        levels = [output(lateral(x)) for lateral, output, x in neck]
        return tuple(levels) if self.extra is None else (*levels, *self.extra(levels[-1]))

    def parts(self) -> list[list[nn.Module]]:
        """What may be frozen: the body's parts."""
        return cast(Body, self.body).parts()


class ImagePyramid(nn.Module):
    """One network over the image at twice its size, its own, half, a quarter ...: the level k has 2^(k - 1) times the
    network's stride on the image itself."""

    def __init__(self, level: Levels, count: int) -> None:
        super().__init__()
        self.level = level
        self.factors = tuple(2.0 ** (1 - k) for k in range(count))
        self.strides = self.region_strides = tuple(round(level.strides[0] / factor) for factor in self.factors)
        self.channels = level.channels * count

    @property
    def body(self) -> nn.Module:
        """The network without the layers that bring its map to a width."""
        return self.level.body

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c _ _"], ...]:
        """The map of the image at every size, finest first."""
        maps = []
        for factor in self.factors:
            size = [max(1, round(side * factor)) for side in x.shape[2:]]
            scaled = x if factor == 1 else interpolate(x, size, mode="bilinear", antialias=factor < 1)
            maps += self.level(scaled)
        return tuple(maps)

    def parts(self) -> list[list[nn.Module]]:
        """What may be frozen: the body's parts."""
        return self.level.parts()


def pyramid(
    kind: Kind,
    whole: Callable[[], nn.Module],
    one: Callable[[], nn.Module],
    width: int,
    *,
    extra: bool,
    levels: int,
) -> FPN | Levels | ImagePyramid:
    """The pyramid of a kind over a body: `whole` gives its maps of all stages, `one` that of stride 16 alone.

    `levels` is how many sizes an image pyramid has.
    """
    more = EverySecond() if extra else None
    if kind == "top_down":
        return FPN(whole(), width, extra=more)
    if kind == "levels":
        return Levels(whole(), width, extra=more)
    single = Levels(one(), width)
    return single if kind == "single" else ImagePyramid(single, levels)
