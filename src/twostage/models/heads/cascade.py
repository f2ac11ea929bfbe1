"""A cascade of box heads, each refining the boxes of the one before (Cascade R-CNN, Cai and Vasconcelos 2018).

A head trained at IoU 0.5 produces boxes good enough to train a head at 0.6, and so on: each stage samples from the
boxes of the stage before, so that there are enough positives for the higher threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twostage.data.batch import Targets
from twostage.errors import UsageError
from twostage.models.component import IoULimit, NotNegative, Quad
from twostage.models.heads.box import BoxHead, BoxHeadConfig, BoxPredictions, Head, StageConfig, StagePredictions
from twostage.models.heads.mask import MaskHead, with_mean_masks
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig, Scored, probabilities
from twostage.models.losses import Losses, ReduceMean, no_reduce
from twostage.models.proposals.rpn import Proposals
from twostage.models.regions.pooling import Maps, RegionFeatures
from twostage.models.targets.sampling import Sampler
from twostage.ops.boxes import clip, precise


@dataclass(frozen=True)
class CascadeConfig:
    """One value per stage; the others differ between projects.

    `masks`: which stages learn masks from their regions, every one or the first alone (Cai and Vasconcelos 2019, figure
    6: d, as in mmdetection; b, as in detectron2). `scores`: what is averaged over the stages, probabilities
    (detectron2) or logits (mmdetection).
    """

    ious: tuple[IoULimit, ...] = (0.5, 0.6, 0.7)
    delta_weights: tuple[Quad, ...] = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    loss_weights: tuple[NotNegative, ...] = (1.0, 0.5, 0.25)  # mmdetection's; detectron2 has 1, 1, 1
    masks: Literal["every", "first"] = "every"
    scores: Literal["probabilities", "logits"] = "probabilities"
    # Factor of the gradient of each stage's box head to the maps; detectron2 has 1/3, and 1 for masks, as here.
    gradient: NotNegative = 1.0


class Cascade(Head):
    """Box heads one after the other, and with `masks` a mask head beside each, or beside the first (Cascade Mask R-CNN,
    2019)."""

    def __init__(self, config: CascadeConfig, boxes: Sequence[BoxHead], masks: Sequence[MaskHead] = ()) -> None:
        super().__init__()
        self.config = config
        self.boxes = nn.ModuleList(boxes)
        self.mask = nn.ModuleList(masks)
        self.has_masks = len(masks) > 0

    def predict(self, features: RegionFeatures, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> StagePredictions:
        """The predictions of each stage for the boxes that the one before has refined."""
        stages: list[BoxPredictions] = []
        boxes = proposals.boxes
        for head in self.box_heads:
            stages.append(head(features, boxes))
            if head is not self.box_heads[-1]:
                boxes = refine(head, stages[-1], sizes)
        return tuple(stages)

    def scored(self, predictions: StagePredictions, proposals: Proposals, config: PostprocessConfig) -> Scored:
        """The mean of all stages' scores, and the boxes of the last stage."""
        last = predictions[-1]
        logits = torch.stack([precise(stage.logits) for stage in predictions])
        # The softmax of a logarithm is the probability itself.
        of_logits = self.config.scores == "logits"
        mean = logits.mean(dim=0) if of_logits else logits.softmax(dim=3).mean(dim=0).log()
        refined = proposals._replace(boxes=last.boxes)
        return probabilities(mean, last.deltas, refined, self.box_heads[-1].coder, config)

    def predict_masks(self, features: RegionFeatures, detections: BatchDetections) -> BatchDetections:
        """Detections with the mean of the masks of all mask heads."""
        if not self.has_masks:
            return detections
        heads = self.mask_heads
        return with_mean_masks(heads, lambda x: (head.convs(x) for head in heads), features, detections)

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: ReduceMean = no_reduce,
    ) -> Losses:
        """The weighted losses of every stage; each learns from boxes sampled from those of the stage before."""
        losses: Losses = {}
        features = self.fuse_features(maps)
        scaled = scale_gradient(features, self.config.gradient)
        boxes, valid = proposals.boxes, proposals.valid
        for k, (head, weight) in enumerate(zip(self.box_heads, self.config.loss_weights, strict=True)):
            out = head.compute_losses(scaled, boxes, valid, with_stage_seed(targets, k), sampler, mean)
            boxes, valid = refine(head, out.predictions, sizes), out.targets.valid
            stage = dict(out.losses)
            if k < len(self.mask):
                mask = self.mask_heads[k]
                stage["mask"] = mask.loss(out.targets, targets, partial(mask, features), mean)
            losses |= {f"{name}_{k + 1}": weight * loss for name, loss in stage.items()}
        return losses

    @property
    def box_heads(self) -> list[BoxHead]:
        """The box heads in order."""
        return cast(list[BoxHead], list(self.boxes))

    @property
    def mask_heads(self) -> list[MaskHead]:
        """The mask heads in order."""
        return cast(list[MaskHead], list(self.mask))


def stage_configs(config: CascadeConfig, box_head: BoxHeadConfig) -> list[tuple[BoxHeadConfig, StageConfig]]:
    """What each stage's head is built from. Raises UsageError where stages and their values differ in number."""
    values = (config.ious, config.delta_weights, config.loss_weights)
    if len({len(value) for value in values}) > 1:
        numbers = ", ".join(map(str, map(len, values)))
        raise UsageError(
            f"cascade_ious, cascade_delta_weights and cascade_loss_weights have {numbers} values: give one per stage"
        )
    return [
        (
            # Only before the first stage: with many objects little room is left for the refined boxes of later ones.
            replace(box_head, append_ground_truth=box_head.append_ground_truth and k == 0),
            # Class-agnostic: a box is refined before its class is known.
            StageConfig(iou, (0.0, iou), weights, class_agnostic=True),
        )
        for k, (iou, weights) in enumerate(zip(config.ious, config.delta_weights, strict=True))
    ]


@torch.no_grad()
def refine(head: BoxHead, predictions: BoxPredictions, sizes: Int[Tensor, "n 2"]) -> Float[Tensor, "n p 4"]:
    """The boxes moved by their class-agnostic deltas and clipped; no gradient flows through them."""
    return clip(head.coder.decode(predictions.deltas[:, :, 0], predictions.boxes), sizes)


def with_stage_seed(targets: Targets, stage: int) -> Targets:
    """The same targets with sampling seeds of the stage's own."""
    return replace(targets, seeds=targets.seeds ^ (stage * 0x9E3779B97F4A7))


def scale_gradient(features: RegionFeatures, factor: float) -> RegionFeatures:
    """The same features; the gradient that flows back through them is multiplied by the factor."""

    def scaled(x: Tensor) -> Tensor:
        if factor == 1 or not x.requires_grad:
            return x
        same = x.view_as(x)
        same.register_hook(lambda gradient: gradient * factor)
        return same

    return features.each(scaled)
