"""Residual networks (He et al. 2016, Table 1) and ResNeXt (Xie et al. 2017), with torchvision's parameter names."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from twostage.errors import UsageError
from twostage.kinds import Within
from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.norm import Conv2d, ConvNorm, Norm, NormConfig, conv_norm, init_convs, norm_layer
from twostage.models.component import Count, short

Stage = Annotated[int, Within(1, 4)]


@dataclass(frozen=True)
class ResNetConfig(BackboneConfig):
    """ResNet-18, 34, 50 or 101 and the maps of its stages from `first` to `last`; `dilated`: stage 4 at stride 16.

    The bottlenecks of ResNet-50 and 101 have their stride in the 3 x 3 convolution, as in torchvision, or in the first
    1 x 1, as in the paper and in the networks that detectron2 and mmdetection's `caffe` models begin from. ResNeXt's
    3 x 3 convolutions have `groups` of `width_per_group` channels in stage 1 (Xie et al. 2017, "32x4d").
    """

    depth: Literal[18, 34, 50, 101] = 50
    first: Stage = 1
    last: Stage = 4
    dilated: bool = False
    stride_in_1x1: bool = short(False, "stride_in_1x1")
    groups: Count = 1
    width_per_group: Count = 64
    norm: NormConfig = field(default_factory=NormConfig)

    def build(self) -> nn.Module:
        """The network. Raises UsageError for stages that contradict each other, and for values that ResNet-18 and 34,
        without bottlenecks, cannot have."""
        return resnet(self)

    def with_single_map(self) -> BackboneConfig:
        """Up to stage 3."""
        return replace(self, first=3, last=3, dilated=False)


class Block(NamedTuple):
    """The constructor of a block, from input channels, width, stride and normalisation, and its outputs per width."""

    build: Callable[[int, int, int, Norm], nn.Module]
    expansion: int


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, Figure 5 left)."""

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _downsample(inputs, width, stride, norm)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _ _"]:
        """The block's output, a `stride`-th of the size."""
        y = conv_norm(x, self.conv1, self.bn1, "relu")
        return conv_norm(y, self.conv2, self.bn2, "relu", add=_shortcut(x, self.downsample))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut (He et al. 2016, Figure 5 right); see `ResNetConfig`."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        norm: Norm,
        *,
        stride_in_1x1: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        outputs, inner = 4 * width, width * width_per_group // 64 * groups
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, inner, 1, first, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = Conv2d(inner, inner, 3, second, padding=1, groups=groups, bias=False)
        self.bn2 = norm(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample = _downsample(inputs, outputs, stride, norm)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _ _"]:
        """The block's output, a `stride`-th of the size."""
        y = conv_norm(x, self.conv1, self.bn1, "relu")
        y = conv_norm(y, self.conv2, self.bn2, "relu")
        return conv_norm(y, self.conv3, self.bn3, "relu", add=_shortcut(x, self.downsample))


class ResNet(nn.Module):
    """Stem and the first `stages` of four residual stages; returns the output of each stage from `first` on.

    Stage 1 has stride 4, stage 4 stride 32.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        norm: Norm,
        *,
        first: int,
        stages: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage in range(1, stages + 1):
            inputs = 64 if stage == 1 else 32 * 2**stage // 2 * block.expansion
            self.add_module(f"layer{stage}", residual_stage(block, inputs, depths[stage - 1], stage, norm))
        self.names = tuple(f"layer{stage}" for stage in range(1, stages + 1))
        self.first = first
        self.channels = tuple(32 * 2**stage * block.expansion for stage in range(first, stages + 1))
        self.strides = tuple(2 ** (stage + 1) for stage in range(first, stages + 1))
        init_convs(self)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        """The maps of the stages from `first` on, finest first."""
        x = self.maxpool(conv_norm(x, self.conv1, self.bn1, "relu"))
        maps = []
        for name in self.names:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return tuple(maps[self.first - 1 :])

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen, from the input on: the stem, then each stage."""
        return [[self.conv1, self.bn1], *([self.get_submodule(name)] for name in self.names)]


def residual_stage(block: Block, inputs: int, depth: int, stage: int, norm: Norm) -> nn.Sequential:
    """Stage 1 to 4: `depth` blocks of width 64, 128, 256 or 512, the first with stride 2 but in stage 1."""
    width = 32 * 2**stage
    blocks = [block.build(inputs, width, 1 if stage == 1 else 2, norm)]
    blocks += [block.build(width * block.expansion, width, 1, norm) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def dilated(net: ResNet) -> ResNet:
    """The network with stage 4 at stride 16: its strides become 1, its 3 x 3 convolutions skip every second cell.

    ("DC5": Dai et al. 2017, "Deformable Convolutional Networks", section 4.2; detectron2 dilates all of its blocks.)
    """
    for block in net.get_submodule("layer4").children():
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d):
                conv.stride = (1, 1)
                if conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (2, 2)
    net.strides = (*net.strides[:-1], net.strides[-1] // 2)
    return net


_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def bottleneck(*, stride_in_1x1: bool = False, groups: int = 1, width_per_group: int = 64) -> Block:
    """That of ResNet-50 and 101."""
    build = partial(Bottleneck, stride_in_1x1=stride_in_1x1, groups=groups, width_per_group=width_per_group)
    return Block(build, 4)


def resnet(config: ResNetConfig) -> ResNet:
    """The network of a configuration. Raises as `ResNetConfig.build`."""
    if config.first > config.last:
        raise UsageError(
            f"backbone.first is {config.first} and backbone.last is {config.last}: the maps are those of the stages "
            "from the first to the last. Give a first stage that is not behind it."
        )
    if config.dilated and config.first < 4:
        raise UsageError(
            f"backbone.dilated: stage 4 has then the stride of stage 3, and backbone.first is {config.first}: each map "
            "needs twice the stride of the one before. Give backbone.first=4, or leave dilated out."
        )
    own = {name: getattr(config, name) for name in ("stride_in_1x1", "groups", "width_per_group")}
    if config.depth >= 50:
        block = bottleneck(**own)
    elif own == {"stride_in_1x1": False, "groups": 1, "width_per_group": 64}:
        block = Block(BasicBlock, 1)
    else:
        raise UsageError(
            f"ResNet-{config.depth} has no bottlenecks: leave out stride_in_1x1, groups and width_per_group, or choose "
            "ResNet-50 or 101."
        )
    net = ResNet(block, _DEPTHS[config.depth], norm_layer(config.norm), first=config.first, stages=config.last)
    return dilated(net) if config.dilated else net


def _downsample(inputs: int, outputs: int, stride: int, norm: Norm) -> ConvNorm | None:
    if stride == 1 and inputs == outputs:
        return None
    return ConvNorm(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


def _shortcut(x: Tensor, downsample: nn.Module | None) -> Tensor:
    return x if downsample is None else downsample(x)
