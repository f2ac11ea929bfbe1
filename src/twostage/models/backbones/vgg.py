"""VGG16 (Simonyan and Zisserman 2015, configuration D) up to conv5_3, with torchvision's parameter names.

The four poolings before it round up, as Caffe does, or down, as torchvision: a 600 x 800 image has a 38 x 50 map of
stride 16, or 37 x 50 (Faster R-CNN, section 3.1.1). RoI pooling replaces the fifth (Fast R-CNN, section 2.2).
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.norm import Conv2d, init_convs

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True)
class VGG16Config(BackboneConfig):
    """VGG16; its poolings round the sides of a map of an odd number of cells up or down."""

    pooling: Literal["ceil", "floor"] = "ceil"

    def build(self) -> nn.Module:
        """The network."""
        return VGG16(ceil_mode=self.pooling == "ceil")


class VGG16(nn.Module):
    """Thirteen 3 x 3 convolutions; one map of 512 channels at stride 16."""

    channels = (512,)
    strides = (16,)

    def __init__(self, *, ceil_mode: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for block in WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=ceil_mode))
            for width in block:
                layers += [Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
        self.features = nn.Sequential(*layers)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 512 _ _"], ...]:
        """The map of conv5_3, after its ReLU."""
        return (self.features(x),)

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen, from the input on: the five blocks between poolings."""
        blocks: list[list[nn.Module]] = [[]]
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                blocks.append([])
            blocks[-1].append(layer)
        return blocks
