"""From a region's features to one vector, before the last layers of a box head.

Letters: N images, P regions per image, s the pooled side, d the width of the vector.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from twostage.models.backbones.norm import Norm, NormConfig, conv_tower, init_convs, norm_layer
from twostage.models.backbones.resnet import bottleneck, residual_stage
from twostage.models.component import Count, CountFromZero, Share, short


@dataclass(frozen=True)
class BodyConfig(ABC):
    """The base of every body's configuration."""

    @abstractmethod
    def build(self, channels: int, size: int) -> tuple[nn.Module, int]:
        """The body for regions of so many channels and cells per side, and the width of its vector."""


@dataclass(frozen=True)
class TwoMLPConfig(BodyConfig):
    """fc6 and fc7. At test each is a product of two matrices of `ranks`, 1024 and 256 in Fast R-CNN, section 3.1."""

    channels: Count = short(1024, "head_channels")
    dropout: Share = short(0.0, "dropout")
    ranks: tuple[Count, Count] | None = short(None, "head_ranks")

    def build(self, channels: int, size: int) -> "tuple[TwoMLPHead, int]":
        """The body, and the width of its vector."""
        return TwoMLPHead(channels, size, self.channels, self.dropout, self.ranks), self.channels


@dataclass(frozen=True)
class FourConvConfig(BodyConfig):
    """Convolutions and one linear layer."""

    convs: CountFromZero = short(4, "head_convs")
    channels: Count = short(1024, "head_channels")
    norm: NormConfig = field(default_factory=lambda: NormConfig("batch"))

    def build(self, channels: int, size: int) -> tuple[nn.Module, int]:
        """The body, and the width of its vector."""
        return FourConvHead(channels, size, self.convs, self.channels, norm_layer(self.norm)), self.channels


@dataclass(frozen=True)
class Res5Config(BodyConfig):
    """ResNet's last stage; `stride_in_1x1` as in `ResNetConfig`."""

    stride_in_1x1: bool = short(False, "stride_in_1x1")
    norm: NormConfig = field(default_factory=NormConfig)

    def build(self, channels: int, size: int) -> tuple[nn.Module, int]:
        """The body, and the width of its vector."""
        return Res5Head(channels, norm_layer(self.norm), stride_in_1x1=self.stride_in_1x1), Res5Head.channels


class TwoMLPHead(nn.Module):
    """fc6 and fc7: VGG's 4096 with dropout (Fast R-CNN, section 2.2), or FPN's 1024 (Lin et al. 2017, section 5.2).

    fc6 reads a region in the order row, column, channel, RoIAlign's memory layout; torchvision's and Caffe's
    files have the channel first, and the importers permute their weights. `ranks` are those of a prepared head.
    """

    def __init__(
        self, channels: int, size: int, width: int, dropout: float, ranks: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.fc6 = nn.Linear(channels * size * size, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, regions: Float[Tensor, "n p c h w"]) -> Float[Tensor, "n p d"]:
        """One vector per region."""
        x = regions.permute(0, 1, 3, 4, 2).flatten(2)
        x = dropout(self.fc6(x).relu_(), self.dropout, self.training)
        return dropout(self.fc7(x).relu_(), self.dropout, self.training)


class FourConvHead(nn.Module):
    """3 x 3 convolutions with normalisation, then one linear layer (Wu and He 2018, section 4.2: "4conv1fc")."""

    def __init__(self, channels: int, size: int, convs: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.convs = conv_tower(channels, channels, convs, norm, bias=False)
        self.fc = nn.Linear(channels * size * size, width)
        init_convs(self.convs)

    def forward(self, regions: Float[Tensor, "n p c s s"]) -> Float[Tensor, "n p d"]:
        """One vector per region."""
        x = self.convs(regions.flatten(0, 1)).permute(0, 2, 3, 1).flatten(1)
        return self.fc(x).relu_().unflatten(0, regions.shape[:2])


class Res5Head(nn.Module):
    """ResNet's last stage on every region, then the mean over positions (He et al. 2016, appendix A: "C4")."""

    channels = 2048

    def __init__(self, inputs: int, norm: Norm, *, stride_in_1x1: bool = False) -> None:
        super().__init__()
        self.layer4 = residual_stage(bottleneck(stride_in_1x1=stride_in_1x1), inputs, 3, 4, norm)
        init_convs(self.layer4)

    def forward(self, regions: Float[Tensor, "n p c s s"]) -> Float[Tensor, "n p d"]:
        """One vector per region."""
        return self.layer4(regions.flatten(0, 1)).mean((2, 3)).unflatten(0, regions.shape[:2])
