"""EfficientNet-Lite (Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite"), after Tan and Le 2019.

Inverted residuals with ReLU6, without squeeze-and-excitation, for small processors. Lite1 and Lite2 have more blocks
and channels.

TensorFlow pads an even map for stride 2 by one pixel more at the end than at the beginning. A kernel with a first row
and column of zeros, and equal padding on both sides, computes the same: the strided kernels here have 4 or 6 rows for
the published 3 and 5. Sizes that `divisor` makes multiples of 32 are even at every stride; for a single map they are
padded.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.norm import Conv2d, ConvNorm, Norm, NormConfig, init_convs, norm_layer
from twostage.ops.plain import Activation


class Row(NamedTuple):
    """Blocks of one size (Tan and Le 2019, Table 1): `repeats` of Lite0, and the channels of each block's output."""

    kernel: int
    stride: int
    expansion: int
    outputs: int
    repeats: int


ROWS = (
    Row(3, 1, 1, 16, 1),
    Row(3, 2, 6, 24, 2),
    Row(5, 2, 6, 40, 2),
    Row(3, 2, 6, 80, 3),
    Row(5, 1, 6, 112, 3),
    Row(5, 2, 6, 192, 4),
    Row(3, 1, 6, 320, 1),
)
STEM = 32
# Width and depth of Lite0, Lite1 and Lite2, relative to Lite0; the stem and the number of blocks at either end stay.
SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))
# The rows after which a map is returned: the last of each stride from 4 on.
_ENDS = (1, 2, 4, 6)


@dataclass(frozen=True)
class EfficientNetLiteConfig(BackboneConfig):
    """EfficientNet-Lite0, 1 or 2, with the batch normalisation of the published weights.

    With `single` up to the map of stride 16, which is the only one.
    """

    variant: Literal[0, 1, 2] = 0
    single: bool = False
    norm: NormConfig = field(default_factory=lambda: NormConfig("frozen", eps=1e-3))

    def build(self) -> nn.Module:
        """The network."""
        return EfficientNetLite(self.variant, norm_layer(self.norm), single=self.single)

    def with_single_map(self) -> BackboneConfig:
        """Up to stride 16."""
        return replace(self, single=True)


class EfficientNetLite(nn.Module):
    """The convolutional part; returns the maps of strides 4, 8, 16 and 32, or with `single` that of stride 16."""

    def __init__(self, variant: int, norm: Norm, *, single: bool = False) -> None:
        super().__init__()
        width, depth = SCALES[variant]
        self.stem = _conv(3, STEM, 3, 2, 1, norm, "relu6")
        self.ends = _ENDS[:3] if single else _ENDS
        first = 2 if single else 0
        inputs, stages = STEM, []
        for place, row in enumerate(ROWS[: self.ends[-1] + 1]):
            outputs = _scaled(row.outputs, width)
            repeats = row.repeats if place in (0, len(ROWS) - 1) else math.ceil(depth * row.repeats)
            blocks = []
            for number in range(repeats):
                stride = row.stride if number == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, row.kernel, stride, row.expansion, norm))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.returned = self.ends[first:]
        self.channels = tuple(_scaled(ROWS[end].outputs, width) for end in self.returned)
        self.strides = tuple(4 << stage for stage in range(first, len(self.ends)))
        init_convs(self)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        """The last map of each stride."""
        if len(self.returned) == 1:  # in an image pyramid, whose smaller images may have odd sides
            height, width = (-side % self.strides[0] for side in x.shape[2:])
            x = pad(x, (0, width, 0, height))
        x = self.stem(x)
        maps = []
        for place, stage in enumerate(self.stages):
            x = stage(x)
            if place in self.returned:
                maps.append(x)
        return tuple(maps)

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen, from the input on: the stem with the first blocks, then those up to each map."""
        starts = [0, *(end + 1 for end in self.ends[:-1])]
        stages = list(self.stages)
        parts = [stages[start : end + 1] for start, end in zip(starts, self.ends, strict=True)]
        return [[self.stem, *parts[0]], *parts[1:]]


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; the input is added where shapes are equal (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, norm: Norm) -> None:
        super().__init__()
        expanded = expansion * inputs
        layers = [] if expansion == 1 else [_conv(inputs, expanded, 1, 1, 1, norm, "relu6")]
        layers.append(_conv(expanded, expanded, kernel, stride, expanded, norm, "relu6"))
        self.block = nn.Sequential(*layers)
        self.project = _conv(expanded, outputs, 1, 1, 1, norm, "none")
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _ _"]:
        """The block's output."""
        y = self.block(x)
        return self.project(y, x if self.residual else None)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, norm: Norm, activation: Activation
) -> ConvNorm:
    """A convolution of the published kernel, larger by one where it has stride 2 (see above)."""
    size, padding = (kernel + 1, kernel // 2) if stride == 2 else (kernel, kernel // 2)
    conv = Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    return ConvNorm(conv, norm(outputs), activation)


def _scaled(channels: int, width: float) -> int:
    """Multiplied, and rounded to a multiple of 8 that loses no more than a tenth."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
