"""A small residual network that trains from scratch on two CPU cores."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.norm import Norm, NormConfig, init_convs, norm_layer
from twostage.models.backbones.resnet import BasicBlock


@dataclass(frozen=True)
class TinyConfig(BackboneConfig):
    """All four stages, or with `single` the map of stride 16 alone, without the stage behind it."""

    single: bool = False
    norm: NormConfig = field(default_factory=lambda: NormConfig("batch"))

    def build(self) -> nn.Module:
        """The network."""
        return Tiny(norm_layer(self.norm), single=self.single)

    def with_single_map(self) -> BackboneConfig:
        """Without the last stage."""
        return replace(self, single=True)


class Tiny(nn.Module):
    """A stem of stride 4, then a residual block at each of strides 4, 8, 16 and 32; returns the map of each.

    `single`: the first three blocks, and the map of the last of them alone.
    """

    def __init__(self, norm: Norm, *, single: bool = False) -> None:
        super().__init__()
        widths = (32, 64, 128) if single else (32, 64, 128, 192)
        self.first = first = 2 if single else 0
        self.channels = tuple(widths[first:])
        self.strides = tuple(4 << stage for stage in range(first, len(widths)))
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False),
            norm(24),
            nn.ReLU(inplace=True),
            nn.Conv2d(24, widths[0], 3, stride=2, padding=1, bias=False),
            norm(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(inputs, width, 1 if stage == 0 else 2, norm))
            for stage, (inputs, width) in enumerate(pairwise((widths[0], *widths)))
        )
        init_convs(self)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        """The maps of the stages from `first` on, finest first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[self.first :])

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen, from the input on: the stem, then each stage."""
        return [[self.stem], *([stage] for stage in self.stages)]
