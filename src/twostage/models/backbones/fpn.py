"""Pyramids of maps for objects of every size (FPN, Lin et al. 2017, figure 1); `PyramidConfig.kind` chooses one.

single    (b) one map, anchors of all sizes on it
image     (a) one map of the image at several sizes
levels    (c) the maps of several stages, each by itself
top_down  (d) the feature pyramid network
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from twostage.errors import UsageError
from twostage.models.backbones.backbone import Backbone
from twostage.models.backbones.norm import Conv2d, ConvNorm, Norm, NormConfig, norm_layer
from twostage.models.component import Count, short


@dataclass(frozen=True)
class FPNConfig:
    """`extra` levels behind the coarsest: none, one by `LastLevelMaxPool`, or two by `LastLevelP6P7`.

    The first of two reads the coarsest level of the pyramid ("p6p7", torchvision) or of the body ("p6p7_of_body", the
    paper and detectron2); the second reads it through ReLU, or without ("_linear", mmdetection).
    """

    channels: Count = 256
    extra: Literal["none", "max_pool", "p6p7", "p6p7_linear", "p6p7_of_body", "p6p7_of_body_linear"] = "max_pool"
    norm: NormConfig | None = None


@dataclass(frozen=True)
class PyramidConfig:
    """A neck whose `kind` can be chosen; `extra` levels as in `FPNConfig`, for "top_down" and "levels"."""

    kind: Literal["top_down", "levels", "single", "image"] = short("top_down", "pyramid")
    channels: Count = 256
    extra: Literal["none", "max_pool"] = "max_pool"


class FPN(nn.Module):
    """A body and its feature pyramid (Lin et al. 2017, section 3): semantically strong features at every level.

    Each level is its 1 x 1 lateral plus the coarser level upsampled, then a 3 x 3 convolution. Without `top_down` the
    coarser level is not added (table 1, d). `extra` makes `extra.levels` more levels from the coarsest, or from that of
    the body; only the RPN reads them.
    """

    def __init__(
        self,
        body: nn.Module,
        width: int,
        norm: Norm | None = None,
        *,
        extra: "LastLevelMaxPool | LastLevelP6P7 | None" = None,
        top_down: bool = True,
    ) -> None:
        super().__init__()
        self.body = body
        shape = cast(Backbone, body)
        self.laterals = nn.ModuleList(neck_conv(c, width, 1, norm) for c in shape.channels)
        self.outputs = nn.ModuleList(neck_conv(width, width, 3, norm) for _ in shape.channels)
        self.upsample = Nearest()
        self.top_down = top_down
        self.extra = extra
        self.region_strides = shape.strides
        more = 0 if extra is None else extra.levels
        self.strides = (*shape.strides, *(shape.strides[-1] << k for k in range(1, more + 1)))
        self.channels = (width,) * len(self.strides)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c _ _"], ...]:
        """Maps of equal width, finest first, extra levels last."""
        # Maps are released once they are read: the finest is as large as all others together.
        maps = list(self.body(x))
        coarsest = maps[-1] if self.extra is not None and self.extra.of_body else None
        tops: list[Tensor] = []
        for lateral in reversed(self.laterals):
            x = maps.pop()
            coarser = self.upsample(tops[-1], x.shape[2:]) if tops and self.top_down else None
            tops.append(lateral(x, add=coarser))
        del x
        levels = [output(tops.pop()) for output in self.outputs]
        if self.extra is None:
            return tuple(levels)
        return (*levels, *self.extra(levels[-1] if coarsest is None else coarsest))

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen: the body's stages."""
        return cast(Backbone, self.body).get_stages()


class ImagePyramid(nn.Module):
    """One network over the image at twice its size, its own, half, a quarter ...: the level k has 2^(k - 1) times the
    network's stride on the image itself."""

    def __init__(self, level: FPN, count: int) -> None:
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


class LastLevelMaxPool(nn.Module):
    """One more level: every second pixel of the coarsest (Lin et al. 2017, section 4.1)."""

    levels = 1
    of_body = False

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c _ _"], ...]:
        """The level."""
        return (max_pool2d(x, 1, stride=2),)


class LastLevelP6P7(nn.Module):
    """Two more levels, each a 3 x 3 convolution of stride 2 of the one before (RetinaNet, section 4).

    The first reads the pyramid's coarsest level or, with `of_body`, the body's; see `FPNConfig`.
    """

    levels = 2

    def __init__(self, inputs: int, width: int, *, of_body: bool = False, relu: bool = True) -> None:
        super().__init__()
        self.of_body = of_body
        self.relu = relu
        self.sixth, self.seventh = (neck_conv(c, width, 3, None, stride=2) for c in (inputs, width))

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d _ _"], ...]:
        """The levels, finer first."""
        sixth = self.sixth(x)
        return sixth, self.seventh(sixth.relu() if self.relu else sixth)


class Nearest(nn.Module):
    """Nearest-neighbour resizing of a map."""

    def forward(self, x: Float[Tensor, "n c h w"], size: Sequence[int]) -> Float[Tensor, "n c _ _"]:
        """The map at this height and width."""
        return interpolate(x, size, mode="nearest")


def pyramid(
    config: PyramidConfig, whole: Callable[[], nn.Module], one: Callable[[], nn.Module], *, levels: int
) -> FPN | ImagePyramid:
    """The pyramid over a body: `whole` makes the one with the maps of all stages, `one` that of stride 16 alone.

    `levels` is the number of sizes of an image pyramid. Raises UsageError where several maps stand for a single one.
    """
    if config.kind in ("top_down", "levels"):
        extra = LastLevelMaxPool() if config.extra == "max_pool" else None
        return FPN(whole(), config.channels, extra=extra, top_down=config.kind == "top_down")
    single = FPN(one(), config.channels)
    if len(single.strides) > 1:
        raise UsageError(
            f"pyramid is {config.kind!r}, which needs a backbone with a single map; this one has {len(single.strides)} "
            f"(strides {', '.join(map(str, single.strides))}): choose pyramid=top_down or levels."
        )
    return single if config.kind == "single" else ImagePyramid(single, levels)


def feature_pyramid(config: FPNConfig, body: nn.Module) -> FPN:
    """The pyramid of a body."""
    norm = None if config.norm is None else norm_layer(config.norm)
    extra: LastLevelMaxPool | LastLevelP6P7 | None = None
    if config.extra == "max_pool":
        extra = LastLevelMaxPool()
    elif config.extra != "none":
        of_body, relu = config.extra.startswith("p6p7_of_body"), not config.extra.endswith("_linear")
        inputs = cast(Backbone, body).channels[-1] if of_body else config.channels
        extra = LastLevelP6P7(inputs, config.channels, of_body=of_body, relu=relu)
    return FPN(body, config.channels, norm, extra=extra)


def neck_conv(inputs: int, width: int, kernel: int, norm: Norm | None, *, stride: int = 1) -> ConvNorm:
    """A convolution of a pyramid, with a bias where no normalisation follows."""
    conv = Conv2d(inputs, width, kernel, stride, kernel // 2, bias=norm is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return ConvNorm(conv, None if norm is None else norm(width))
