"""The "ZF" net (Zeiler and Fergus 2014), the fast version that SPPnet and Faster R-CNN use: five convolutions."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.norm import Conv2d


class LocalNorm(nn.Module):
    """Local response normalisation within a channel: x / (1 + alpha * mean of x^2 in 3 x 3 cells) ^ beta.

    Caffe's LRNLayer with norm_region WITHIN_CHANNEL; beyond the border x counts as 0.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The normalised map."""
        mean = avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x / (1 + self.alpha * mean) ** self.beta


@dataclass(frozen=True)
class ZFConfig(BackboneConfig):
    """ZF, which has no fields."""

    def build(self) -> nn.Module:
        """The network."""
        return ZF()


class ZF(nn.Module):
    """Five convolutions up to conv5; one map of 256 channels at stride 16.

    Its pooling and normalisation are those of py-faster-rcnn's models/pascal_voc/ZF.
    """

    channels = (256,)
    strides = (16,)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2, padding=3),
            nn.ReLU(inplace=True),
            LocalNorm(),
            nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
            nn.Conv2d(96, 256, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            LocalNorm(),
            nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
            Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 256 _ _"], ...]:
        """The map of conv5, after its ReLU."""
        return (self.features(x),)

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen, from the input on: the five convolutions."""
        return [[layer] for layer in self.features if isinstance(layer, nn.Conv2d)]
