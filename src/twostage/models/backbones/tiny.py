"""A small residual network that trains from scratch on two CPU cores."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor, nn

from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.norm import Norm, NormConfig, norm_layer
from twostage.models.backbones.resnet import BasicBlock


@dataclass(frozen=True)
class TinyConfig(BackboneConfig):
    """All four stages, or with `single` the map of stride 16 alone, without the stage behind it."""

    single: bool = False
    norm: NormConfig = field(default_factory=lambda: NormConfig("batch"))

    def build(self) -> nn.Module:
        """The network."""
        norm = norm_layer(self.norm)
        return Tiny(norm, (32, 64, 128), (1, 1, 1), first=2) if self.single else Tiny(norm)

    def with_single_map(self) -> BackboneConfig:
        """Without the last stage."""
        return replace(self, single=True)


class Tiny(nn.Module):
    """A stem of stride 4, then one or more residual blocks at strides 4, 8, 16 and 32; returns the map of each stage.

    `widths` and `depths` list the stages; the maps begin with stage `first`.
    """

    def __init__(
        self,
        norm: Norm,
        widths: Sequence[int] = (32, 64, 128, 192),
        depths: Sequence[int] = (1, 1, 1, 1),
        *,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.first = first
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
        inputs = widths[0]
        self.stages = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [BasicBlock(inputs, width, 1 if stage == 0 else 2, norm)]
            blocks += [BasicBlock(width, width, 1, norm) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

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
