"""Masks of detections: a small fully convolutional network on every box (Mask R-CNN, He et al. 2017).

Letters: N images, D boxes per image, C channels, m the pooled side, K classes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from twostage.data.batch import Targets
from twostage.models.backbones.norm import NormConfig, conv_tower, init_convs, norm_layer
from twostage.models.component import Count, CountFromZero, NotNegative, Share, component, short
from twostage.models.filled import filled
from twostage.models.heads.bodies import Res5Head
from twostage.models.heads.box import BoxHead, BoxHeadConfig, Head, StagePredictions
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig, Scored
from twostage.models.losses import Losses, ReduceMean, mask_loss, no_reduce, one_over_sampled
from twostage.models.proposals.rpn import Proposals
from twostage.models.regions.pooling import AlignedRegions, Maps, RegionFeatures, RoIAlignConfig
from twostage.models.targets.masks import mask_targets
from twostage.models.targets.regions import RegionTargets
from twostage.models.targets.sampling import Sampler
from twostage.ops.boxes import gather_boxes, precise

MaskLogits = Callable[[Float[Tensor, "n d 4"], Int[Tensor, "n d"]], Float[Tensor, "n d M M"]]
"""From boxes and their classes to the logits of their masks."""


@dataclass(frozen=True)
class MaskTowerConfig:
    """Regions that the mask head pools itself, finer than those of the boxes, and the convolutions on them."""

    roi: RoIAlignConfig = component(RoIAlignConfig(size=14), size="mask_size")  # masks have twice as many cells
    convs: CountFromZero = short(4, "mask_convs")
    norm: NormConfig | None = None


@dataclass(frozen=True)
class MaskConfig:
    """The mask head (Mask R-CNN, sections 3 and 3.1); without a `tower` it reads the box head's res5 features (C4)."""

    channels: Count = 256
    tower: MaskTowerConfig | None = component(MaskTowerConfig())
    regions: Count | None = None  # positives per image whose masks are learned, drawn at random; None: all
    loss_weight: NotNegative = short(1.0, "mask_lambda")  # of the mask loss against the others
    threshold: Share = 0.5  # of the probability of a pixel
    # torchvision pastes a mask into the box rounded to whole pixels, detectron2 and mmdetection into the exact box.
    paste: Literal["exact", "rounded"] = "exact"

    def build(
        self, box_head: BoxHeadConfig, *, channels: int, strides: tuple[int, ...], num_classes: int
    ) -> "MaskHead":
        """The head on maps of so many channels, learned from the positives of a box head."""
        return MaskHead(
            self,
            nn.Identity() if self.tower is None else AlignedRegions(self.tower.roi, strides),
            Res5Head.channels if self.tower is None else channels,
            num_classes,
            region_batch=box_head.region_batch,
            positive_fraction=box_head.region_positive_fraction,
        )


class ConvTranspose2x2(nn.Module):
    """A transposed convolution of 2 x 2 with stride 2: every cell becomes four, each by its own matrix.

    `weight` is [4, out, in], cells in reading order; torch has [in, out, 2, 2].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=(2 / (4 * outputs)) ** 0.5)  # He et al. 2015, fan out

    def forward(self, x: Float[Tensor, "*r c"]) -> Float[Tensor, "*r 4 d"]:
        """The four cells that each cell becomes."""
        return linear(x, self.weight.flatten(0, 1), self.bias.repeat(4)).unflatten(-1, (4, -1))


class ClassSpecificLinear(nn.Module):
    """The last layer: one linear map per class; only that of the region's class is computed."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.normal_(self.weight, std=0.001)  # as in detectron2: every cell starts at a probability of 0.5

    def forward(self, x: Float[Tensor, "r q c"], labels: Int[Tensor, " r"]) -> Float[Tensor, "r q"]:
        """The logit of every cell."""
        return torch.baddbmm(self.bias[labels, None, None], x, self.weight[labels, :, None]).squeeze(2)


class MaskHead(nn.Module):
    """`regions` pools each box, `convs` are the tower, `up` doubles the cells, `classes` gives each cell's logit.

    `region_batch` and `positive_fraction` are those of the box head, whose positives the masks are learned from.
    """

    def __init__(
        self,
        config: MaskConfig,
        regions: nn.Module,
        channels: int,
        num_classes: int,
        *,
        region_batch: int,
        positive_fraction: float,
    ) -> None:
        super().__init__()
        self.config = config
        self.regions: nn.Module = regions
        self.channels = channels
        self.positives = max(1, int(region_batch * positive_fraction))
        width = config.channels
        tower = config.tower
        norm = norm_layer(tower.norm) if tower is not None and tower.norm is not None else None
        self.convs = conv_tower(channels, width, 0 if tower is None else tower.convs, norm, bias=norm is None)
        self.up = ConvTranspose2x2(width if len(self.convs) else channels, width)
        self.classes = ClassSpecificLinear(width, num_classes)
        init_convs(self.convs)

    def forward(
        self, features: RegionFeatures, boxes: Float[Tensor, "n d 4"], labels: Int[Tensor, "n d"]
    ) -> Float[Tensor, "n d M M"]:
        """The logits of each box's mask for its class."""
        return self.mask_logits(self.convs(self.regions(features, boxes).flatten(0, 1)), labels)

    def mask_logits(self, x: Float[Tensor, "r c m m"], labels: Int[Tensor, "n d"]) -> Float[Tensor, "n d M M"]:
        """Logits from the output of the convolutions.

        The four cells are moved to their places as logits, one number per cell, rather than as C features.
        """
        side = x.shape[2]
        cells = self.up(x.permute(0, 2, 3, 1).flatten(1, 2)).relu_()
        logits = self.classes(cells.flatten(1, 2), labels.flatten())
        return logits.view(*labels.shape, side, side, 2, 2).transpose(3, 4).reshape(*labels.shape, 2 * side, 2 * side)

    def predict_masks(self, detections: BatchDetections, logits_of: MaskLogits) -> BatchDetections:
        """Detections with the masks whose logits `logits_of` computes."""
        count = filled(detections.valid)
        logits = logits_of(detections.boxes[:, :count], detections.labels[:, :count])
        return with_masks(detections, precise(logits).sigmoid())

    def loss(
        self, goal: RegionTargets, targets: Targets, logits_of: MaskLogits, mean: ReduceMean = no_reduce
    ) -> Float[Tensor, ""]:
        """The loss of the positives among sampled regions, or of some of them, by the logits of `logits_of`.

        Raises ValueError for targets without masks.
        """
        if targets.masks is None:
            raise ValueError("A model with masks needs targets with masks: these have none.")
        # An object without a mask has a frame without sides.
        sides = targets.masks.frames[..., 2:] - targets.masks.frames[..., :2]
        masked = goal.positive & (sides > 0).all(dim=2).gather(1, goal.truth)
        most = min(self.positives, self.config.regions or self.positives)
        # Positives are in random order, or sorted by their loss: the sort keeps that order among those with a mask.
        first = masked.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
        first = first[:, : max(1, filled(masked.gather(1, first)))]
        positive, truth, classes = (value.gather(1, first) for value in (masked, goal.truth, goal.classes))
        boxes = gather_boxes(goal.boxes, first)
        logits = logits_of(boxes, (classes - 1).clamp(min=0))
        wanted = mask_targets(boxes, truth, targets.masks, logits.shape[-1])
        return self.config.loss_weight * mask_loss(logits, wanted, positive, one_over_sampled(positive, mean))


def with_masks(detections: BatchDetections, masks: Float[Tensor, "n _ M M"]) -> BatchDetections:
    """Detections with the masks of the first ones; the others are padding, whose masks are 0."""
    padded = pad(masks, (0, 0, 0, 0, 0, detections.boxes.shape[1] - masks.shape[1]))
    return detections._replace(masks=padded.where(detections.valid[..., None, None], 0.0))


def with_mean_masks(
    heads: Sequence[MaskHead],
    convs: Callable[[Tensor], Iterable[Tensor]],
    features: RegionFeatures,
    detections: BatchDetections,
) -> BatchDetections:
    """Detections with the mean of the masks of all heads, which pool the same regions.

    `convs` gives the output of each head's convolutions on the regions.
    """
    count = filled(detections.valid)
    labels = detections.labels[:, :count]
    x = heads[0].regions(features, detections.boxes[:, :count]).flatten(0, 1)
    logits = [head.mask_logits(y, labels) for head, y in zip(heads, convs(x), strict=True)]
    return with_masks(detections, precise(torch.stack(logits)).sigmoid().mean(dim=0))


class BoxAndMaskHead(Head):
    """Mask R-CNN's second stage: boxes first, then a mask for each detection (section 3.1, inference)."""

    has_masks = True

    def __init__(self, box: BoxHead, mask: MaskHead) -> None:
        super().__init__()
        self.box = box
        self.mask = mask

    def predict(self, features: RegionFeatures, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> StagePredictions:
        """The box head's predictions."""
        return self.box.predict(features, proposals, sizes)

    @property
    def box_heads(self) -> "Sequence[BoxHead]":
        """The box head's."""
        return self.box.box_heads

    def scored(self, predictions: StagePredictions, proposals: Proposals, config: PostprocessConfig) -> Scored:
        """The box head's scores and boxes."""
        return self.box.scored(predictions, proposals, config)

    def predict_masks(self, features: RegionFeatures, detections: BatchDetections) -> BatchDetections:
        """The same detections with their masks."""
        return self.mask.predict_masks(detections, partial(self.mask_logits, features))

    def mask_logits(
        self, features: RegionFeatures, boxes: Float[Tensor, "n d 4"], labels: Int[Tensor, "n d"]
    ) -> Float[Tensor, "n d M M"]:
        """The logits of each mask; without a tower from the output of the box head's `Res5Head` ("C4", section 3).

        In training the positives pass through that a second time: a quarter of the regions at most.
        """
        if self.mask.config.tower is not None:
            return self.mask(features, boxes, labels)
        x = cast(Res5Head, self.box.body).layer4(self.box.regions(features, boxes).flatten(0, 1))
        return self.mask.mask_logits(x, labels)

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: ReduceMean = no_reduce,
    ) -> Losses:
        """The multi-task loss, and that of the masks of its positives."""
        features = self.fuse_features(maps)
        out = self.box.compute_losses(features, proposals.boxes, proposals.valid, targets, sampler, mean)
        mask = self.mask.loss(out.targets, targets, partial(self.mask_logits, features), mean)
        return {**out.losses, "mask": mask}
