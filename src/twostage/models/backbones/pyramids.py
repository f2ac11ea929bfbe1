"""The four kinds of pyramids of FPN, figure 1, for objects of every size; `PyramidConfig.kind` chooses one.

single    (b) one map, anchors of all sizes on it
image     (a) one map of the image at several sizes
levels    (c) the maps of several stages, each by itself
top_down  (d) the feature pyramid network: `backbones.fpn`
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from twostage.errors import UsageError
from twostage.models.backbones.fpn import FPN, extra_levels
from twostage.models.component import Count, short


@dataclass(frozen=True)
class PyramidConfig:
    """A neck whose `kind` can be chosen; `extra` levels as in `fpn.FPNConfig`, for "top_down" and "levels"."""

    kind: Literal["top_down", "levels", "single", "image"] = short("top_down", "pyramid")
    channels: Count = 256
    extra: Literal["none", "max_pool"] = "max_pool"


class Levels(FPN):
    """The layers of a feature pyramid without its top-down pathway (FPN, table 1, d): each map by itself."""

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c _ _"], ...]:
        """Maps of equal width, finest first, extra levels last."""
        neck = zip(self.laterals, self.outputs, self.body(x), strict=True)
        levels = [output(lateral(x)) for lateral, output, x in neck]
        return tuple(levels) if self.extra is None else (*levels, *self.extra(levels[-1]))


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
        """The network without the convolutions behind it."""
        return self.level.body

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c _ _"], ...]:
        """The map of the image at every size, finest first."""
        maps = []
        for factor in self.factors:
            size = [max(1, round(side * factor)) for side in x.shape[2:]]
            scaled = x if factor == 1 else interpolate(x, size, mode="bilinear", antialias=factor < 1)
            maps += self.level(scaled)
        return tuple(maps)

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen: the body's stages."""
        return self.level.get_stages()


def pyramid(
    config: PyramidConfig, whole: Callable[[], nn.Module], one: Callable[[], nn.Module], *, levels: int
) -> FPN | ImagePyramid:
    """The pyramid over a body: `whole` makes the one with the maps of all stages, `one` that of stride 16 alone.

    `levels` is the number of sizes of an image pyramid. Raises UsageError where several maps stand for a single one.
    """
    if config.kind == "top_down":
        return FPN(whole(), config.channels, extra=extra_levels(config.extra, config.channels))
    if config.kind == "levels":
        return Levels(whole(), config.channels, extra=extra_levels(config.extra, config.channels))
    single = Levels(one(), config.channels)
    if len(single.strides) > 1:
        raise UsageError(
            f"pyramid is {config.kind!r}, which needs a backbone with a single map; this one has {len(single.strides)} "
            f"(strides {', '.join(map(str, single.strides))}): choose pyramid=top_down or levels."
        )
    return single if config.kind == "single" else ImagePyramid(single, levels)
