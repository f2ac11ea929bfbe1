"""MobileNetV3-Large (Howard et al. 2019, Table 1), with torchvision's parameter names."""

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.norm import ConvNorm, Norm, NormConfig, init_convs, norm_layer
from twostage.ops.plain import Activation


class Row(NamedTuple):
    """One row of the paper's table."""

    kernel: int
    expanded: int
    outputs: int
    squeeze: bool
    activation: Activation
    stride: int


RE: Activation = "relu"
HS: Activation = "hardswish"
LARGE = (
    Row(3, 16, 16, False, RE, 1),
    Row(3, 64, 24, False, RE, 2),
    Row(3, 72, 24, False, RE, 1),
    Row(5, 72, 40, True, RE, 2),
    Row(5, 120, 40, True, RE, 1),
    Row(5, 120, 40, True, RE, 1),
    Row(3, 240, 80, False, HS, 2),
    Row(3, 200, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 480, 112, True, HS, 1),
    Row(3, 672, 112, True, HS, 1),
    Row(5, 672, 160, True, HS, 2),
    Row(5, 960, 160, True, HS, 1),
    Row(5, 960, 160, True, HS, 1),
)


@dataclass(frozen=True)
class MobileNetV3Config(BackboneConfig):
    """MobileNetV3-Large."""

    norm: NormConfig = field(default_factory=NormConfig)

    def build(self) -> nn.Module:
        """The network."""
        return MobileNetV3Large(norm_layer(self.norm))


class MobileNetV3Large(nn.Module):
    """The convolutional part; returns the maps of 160 and 960 channels, both at stride 32."""

    channels = (160, 960)
    strides = (32, 32)
    returned = (13, 16)

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 16, 3, 2, 1, norm, HS)]
        inputs = 16
        for row in LARGE:
            layers.append(InvertedResidual(inputs, row, norm))
            inputs = row.outputs
        layers.append(_conv(inputs, 6 * inputs, 1, 1, 1, norm, HS))
        self.features = nn.Sequential(*layers)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        """The output of the first block of stride 32 and that of the last convolution."""
        maps = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self.returned:
                maps.append(x)
        return tuple(maps)

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen, from the input on: six parts, a new one at each block with stride 2 and at the end."""
        starts = [0, *(i + 1 for i, row in enumerate(LARGE) if row.stride == 2), len(LARGE) + 1]
        layers = list(self.features)
        return [layers[a:b] for a, b in zip(starts, [*starts[1:], len(layers)], strict=True)]


class SqueezeExcitation(nn.Module):
    """Channel attention from global average pooling (Hu et al. 2018), with a hard sigmoid."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The input, each channel multiplied by its weight."""
        weight = self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu())
        return x * nn.functional.hardsigmoid(weight)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection (Howard et al. 2019, Figure 4)."""

    def __init__(self, inputs: int, row: Row, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if row.expanded != inputs:
            layers.append(_conv(inputs, row.expanded, 1, 1, 1, norm, row.activation))
        layers.append(_conv(row.expanded, row.expanded, row.kernel, row.stride, row.expanded, norm, row.activation))
        if row.squeeze:
            layers.append(SqueezeExcitation(row.expanded, _divisible_by_8(row.expanded / 4)))
        layers.append(_conv(row.expanded, row.outputs, 1, 1, 1, norm, "none"))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and inputs == row.outputs

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _ _"]:
        """The block's output, plus the input where shapes are equal."""
        y = self.block(x)
        return x + y if self.residual else y


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, norm: Norm, activation: Activation
) -> ConvNorm:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return ConvNorm(conv, norm(outputs), activation)


def _divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8 that loses no more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
