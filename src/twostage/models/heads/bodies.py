"""What turns a region's features into one vector, before the last layers of a box head.

Letters: N images, P regions an image, s the pooled side, d the width of the vector.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from twostage.models.backbones.norm import ConvNorm, Norm
from twostage.models.backbones.resnet import Bottleneck, residual_stage


class TwoLayers(nn.Module):
    """fc6 and fc7: VGG's 4096 with dropout (Fast R-CNN, section 2.2), or FPN's 1024 (Lin et al. 2017, section 5.2).

    fc6 reads a region row, column, channel, as RoIAlign leaves it in memory; torchvision's and Caffe's files have the
    channel first, and the importers turn their weights. `ranks` are what a prepared head keeps of fc6 and fc7.
    """

    def __init__(
        self, channels: int, size: int, width: int, dropout: float, ranks: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.fc6 = nn.Linear(channels * size * size, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, regions: Float[Tensor, "n p c s s"]) -> Float[Tensor, "n p d"]:
        """One vector a region."""
        x = regions.permute(0, 1, 3, 4, 2).flatten(2)
        x = dropout(self.fc6(x).relu_(), self.dropout, self.training)
        return dropout(self.fc7(x).relu_(), self.dropout, self.training)


class ConvsAndLayer(nn.Module):
    """3 x 3 convolutions with normalisation, then one linear layer (Wu and He 2018, section 4.2: "4conv1fc")."""

    def __init__(self, channels: int, size: int, convs: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                ConvNorm(nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm(channels), "relu")
                for _ in range(convs)
            )
        )
        self.fc = nn.Linear(channels * size * size, width)
        for module in self.convs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, regions: Float[Tensor, "n p c s s"]) -> Float[Tensor, "n p d"]:
        """One vector a region."""
        x = self.convs(regions.flatten(0, 1)).permute(0, 2, 3, 1).flatten(1)
        return self.fc(x).relu_().unflatten(0, regions.shape[:2])


class Stage5(nn.Module):
    """ResNet's last stage on every region, then the mean over positions (He et al. 2016, appendix A: "C4")."""

    channels = 2048

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.layer4 = residual_stage(Bottleneck, 1024, 3, 4, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, regions: Float[Tensor, "n p c s s"]) -> Float[Tensor, "n p d"]:
        """One vector a region."""
        return self.layer4(regions.flatten(0, 1)).mean((2, 3)).unflatten(0, regions.shape[:2])
