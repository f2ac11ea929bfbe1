"""The semantic branch: a segmentation of the image; its features are added to those of regions (HTC, section 3.2).

Letters: N images, C channels, K classes of stuff.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from twostage.data.stuff import STRIDE, UNKNOWN
from twostage.errors import UsageError
from twostage.models.backbones.norm import ConvNorm, conv_tower, init_convs
from twostage.models.component import CountFromZero, NotNegative, short
from twostage.models.losses import ReduceMean, no_reduce


@dataclass(frozen=True)
class SemanticConfig:
    """`classes` of stuff: 0 without the branch, "data" as many as the data set has.

    Its laterals read the maps of the regions and are brought to one size (the paper, figure 4), or, as in mmdetection,
    "all" maps of the pyramid, which are brought to that size before, with their corners aligned. Features are added to
    those of a box at its own size, or `averaged` from those of a mask, as in mmdetection.
    """

    classes: CountFromZero | Literal["data"] = "data"
    convs: CountFromZero = 4
    maps: Literal["regions", "all"] = "regions"
    averaged: bool = False
    loss_weight: NotNegative = short(0.2, "semantic_lambda")  # mmdetection's; the paper has 1

    @property
    def has_branch(self) -> bool:
        """Whether there is a branch: "data" stands for none until a data set gives the number."""
        return isinstance(self.classes, int) and self.classes > 0


class SemanticBranch(nn.Module):
    """All levels brought to stride 8 and summed, some convolutions, then two layers: an embedding, and class logits."""

    def __init__(self, config: SemanticConfig, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        if STRIDE not in strides:
            raise UsageError(
                f"The semantic branch needs a map of stride {STRIDE}: leave pyramid out, or semantic_classes=0."
            )
        assert isinstance(config.classes, int)
        self.loss_weight = config.loss_weight
        self.middle = list(strides).index(STRIDE)
        self.all_maps = config.maps == "all"
        count = len(strides) + (1 if self.all_maps else 0)
        self.laterals = nn.ModuleList(ConvNorm(nn.Conv2d(channels, channels, 1), None, "relu") for _ in range(count))
        self.convs = conv_tower(channels, channels, config.convs, bias=True)
        self.embedding = ConvNorm(nn.Conv2d(channels, channels, 1), None, "relu")
        self.logits = nn.Conv2d(channels, config.classes, 1)
        init_convs(self)
        nn.init.normal_(self.logits.weight, std=0.01)  # nearly equal scores for all classes at the start

    def features(self, maps: Sequence[Float[Tensor, "n c _ _"]]) -> Float[Tensor, "n c i j"]:
        """The input of both layers."""
        shape = maps[self.middle].shape[2:]
        levels = zip(self.laterals, maps, strict=False)  # an extra level is read only with `all_maps`
        if self.all_maps:
            summed = sum(lateral(_at(x, shape, align_corners=True)) for lateral, x in levels)
        else:
            summed = sum(_at(lateral(x), shape, align_corners=False) for lateral, x in levels)
        return self.convs(summed)

    def loss(
        self, features: Float[Tensor, "n c i j"], stuff: UInt8[Tensor, "n i j"], mean: ReduceMean = no_reduce
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the pixels with a known class."""
        known = stuff != UNKNOWN
        each = cross_entropy(self.logits(features).float(), stuff.long(), ignore_index=UNKNOWN, reduction="sum")
        count = mean(known.sum().float())
        return each / count.where(count > 0, 1.0)


def _at(x: Float[Tensor, "n c h w"], shape: Sequence[int], *, align_corners: bool) -> Float[Tensor, "n c _ _"]:
    """A map at this height and width."""
    return x if x.shape[2:] == shape else interpolate(x, shape, mode="bilinear", align_corners=align_corners)
