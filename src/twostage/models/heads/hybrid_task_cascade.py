"""Hybrid Task Cascade: interleaved box and mask heads, and a semantic branch (Chen et al. 2019).

It differs from Cascade Mask R-CNN in three ways; a field turns each off:

1. Interleaved execution: a stage's mask head reads the boxes that its box head has just refined (section 3.1).
2. Mask information flow: it also reads the features of the mask heads before it for the same region (section 3.1).
3. A semantic branch reads all levels; its features are added to those of every box and mask (section 3.2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from twostage.data.batch import Targets
from twostage.models.backbones.norm import ConvNorm, init_convs
from twostage.models.heads.box import BoxHead, Head, StagePredictions
from twostage.models.heads.cascade import Cascade, CascadeConfig, refine, scale_gradient, with_stage_seed
from twostage.models.heads.mask import MaskHead, with_mean_masks
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig, Scored
from twostage.models.heads.semantic import SemanticBranch
from twostage.models.losses import Losses, ReduceMean, no_reduce
from twostage.models.proposals.rpn import Proposals
from twostage.models.regions.pooling import AlignedRegions, Maps, RegionFeatures
from twostage.models.targets.sampling import Sampler


@dataclass(frozen=True)
class HTCConfig:
    """What a Hybrid Task Cascade has beyond a cascade with masks; its semantic branch is a component of its own."""

    interleaved: bool = True
    mask_flow: bool = True


class SemanticRegions(nn.Module):
    """Regions pooled from the maps, and the same regions of the semantic branch's embedding added to them.

    Those of the embedding may be larger: cells of theirs are averaged.
    """

    def __init__(self, regions: nn.Module, context: AlignedRegions) -> None:
        super().__init__()
        self.regions = regions
        self.context = context

    def forward(self, features: RegionFeatures, boxes: Float[Tensor, "n p 4"]) -> Float[Tensor, "n p c s s"]:
        """Features of each box."""
        assert features.semantic is not None
        own, context = self.regions(features, boxes), self.context.pool([features.semantic], boxes)
        if context.shape != own.shape:
            context = adaptive_avg_pool2d(context.flatten(0, 1), own.shape[3:]).unflatten(0, own.shape[:2])
        return own + context


class HybridTaskCascade(Head):
    """The boxes of a `Cascade`, mask heads connected by `flows`, and a `semantic` branch or none."""

    has_masks = True

    def __init__(
        self,
        config: HTCConfig,
        cascade: CascadeConfig,
        boxes: Sequence[BoxHead],
        masks: Sequence[MaskHead],
        semantic: SemanticBranch | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.cascade = Cascade(cascade, boxes)
        self.mask = nn.ModuleList(masks)
        width = masks[0].up.weight.shape[2]
        flows = [nn.Conv2d(width, mask.channels, 1) for mask in masks[1:]] if config.mask_flow else []
        self.flows = nn.ModuleList(ConvNorm(flow, None, "relu") for flow in flows)
        init_convs(self.flows)
        self.semantic = semantic

    @property
    def box_heads(self) -> Sequence[BoxHead]:
        """The cascade's."""
        return self.cascade.box_heads

    def fuse_features(self, maps: Maps) -> RegionFeatures:
        """The maps, and the embedding of the semantic branch."""
        if self.semantic is None:
            return RegionFeatures(maps)
        return RegionFeatures(maps, self.semantic.embedding(self.semantic.features(maps)))

    def predict(self, features: RegionFeatures, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> StagePredictions:
        """The predictions of each stage for the boxes that the one before has refined."""
        return self.cascade.predict(features, proposals, sizes)

    def scored(self, predictions: StagePredictions, proposals: Proposals, config: PostprocessConfig) -> Scored:
        """Scores and boxes as those of a cascade."""
        return self.cascade.scored(predictions, proposals, config)

    def predict_masks(self, features: RegionFeatures, detections: BatchDetections) -> BatchDetections:
        """Detections with the mean of the masks of all stages, each with the features of those before."""
        convs = partial(self._mask_features, stages=range(len(self.mask)))
        return with_mean_masks(self.mask_heads, convs, features, detections)

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: ReduceMean = no_reduce,
    ) -> Losses:
        """The weighted losses of every stage's boxes and masks, and that of the semantic branch.

        Interleaved, masks learn from a sample of the refined boxes: a random one with "ohem" too, since the box head
        has no class loss for them.
        """
        losses: Losses = {}
        features = RegionFeatures(maps)
        if self.semantic is not None:
            if targets.stuff is None:
                raise ValueError("A model with a semantic branch needs targets with stuff maps: these have none.")
            x = self.semantic.features(maps)
            losses["semantic"] = self.semantic.loss_weight * self.semantic.loss(x, targets.stuff, mean)
            features = RegionFeatures(maps, self.semantic.embedding(x))
        scaled = scale_gradient(features, self.cascade.config.gradient)
        boxes, valid = proposals.boxes, proposals.valid
        for k, (head, weight) in enumerate(zip(self.box_heads, self.cascade.config.loss_weights, strict=True)):
            own = with_stage_seed(targets, k)
            out = head.compute_losses(scaled, boxes, valid, own, sampler, mean)
            boxes, valid = refine(head, out.predictions, sizes), out.targets.valid
            goal = out.targets
            if self.config.interleaved:
                goal = head.sample(boxes, valid, with_stage_seed(own, len(self.mask)), sampler)
            logits_of = partial(self._stage_mask_logits, features, stages=k + 1)
            stage = {**out.losses, "mask": self.mask_heads[k].loss(goal, targets, logits_of, mean)}
            losses |= {f"{name}_{k + 1}": weight * loss for name, loss in stage.items()}
        return losses

    def _stage_mask_logits(
        self, features: RegionFeatures, boxes: Float[Tensor, "n d 4"], labels: Int[Tensor, "n d"], *, stages: int
    ) -> Float[Tensor, "n d M M"]:
        """The mask logits of the last of so many stages; without flow those before it are not computed."""
        x = self.mask_heads[0].regions(features, boxes).flatten(0, 1)
        *_, last = self._mask_features(x, range(0 if len(self.flows) else stages - 1, stages))
        return self.mask_heads[stages - 1].mask_logits(last, labels)

    def _mask_features(self, x: Float[Tensor, "r c m m"], stages: range) -> Iterator[Float[Tensor, "r d m m"]]:
        """The output of each stage's convolutions on regions, to which the flow of the stage before is added."""
        before: Tensor | None = None
        for k in stages:
            flow = None if before is None or not len(self.flows) else self.flows[k - 1](before)
            before = self.mask_heads[k].convs(x if flow is None else x + flow)
            yield before

    @property
    def mask_heads(self) -> list[MaskHead]:
        """The mask heads in order."""
        return cast(list[MaskHead], list(self.mask))
