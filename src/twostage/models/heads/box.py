"""The second stage, and the box head: class scores and box deltas of each region (Fast R-CNN, section 2).

Letters: N images, P regions per image, K classes; class 0 of K + 1 is background.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from twostage.data.batch import Targets
from twostage.errors import UsageError
from twostage.models.component import Count, IoULimit, NotNegative, Quad, Share, short
from twostage.models.heads.bodies import BodyConfig, TwoMLPConfig
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig, Scored, best_boxes, probabilities
from twostage.models.losses import (
    Losses,
    ReduceMean,
    box_loss,
    class_loss,
    class_losses,
    no_reduce,
    one_over_sampled,
    overlap_loss,
)
from twostage.models.proposals.rpn import Proposals
from twostage.models.regions.pooling import Maps, RegionFeatures, RoIAlignConfig, RoIPoolConfig, pooler
from twostage.models.targets.regions import RegionTargets, append_ground_truth, region_targets
from twostage.models.targets.sampling import RandomSampler, Sample, Sampler, largest
from twostage.ops.boxes import gather_boxes
from twostage.ops.deltas import CLAMP, BoxCoder, Edges


@dataclass(frozen=True)
class BoxHeadConfig:
    """The layers, the sampling and the losses that every box head has, those of a cascade's stages included."""

    body: BodyConfig = field(default_factory=TwoMLPConfig)
    delta_clamp: NotNegative = short(CLAMP, "delta_clamp")
    delta_clamp_two_sided: bool = short(False, "delta_clamp_two_sided")
    # Others than half-open ones are for a single box head without masks.
    edges: Edges = short("half_open", "edges")
    region_batch: Count = short(512, "region_batch")
    region_positive_fraction: Share = short(0.25, "region_positive_fraction")
    # Ground-truth boxes join the proposals in training, in a cascade those of the first stage.
    append_ground_truth: bool = short(True, "region_truth")
    # "ohem" takes the regions with the highest class loss (Shrivastava et al. 2016), of all that were proposed.
    region_sampling: Literal["random", "ohem"] = short("random", "region_sampling")
    box_loss: Literal["smooth_l1", "l1", "giou", "diou", "ciou"] = short("smooth_l1", "box_loss")
    box_beta: NotNegative = short(1 / 9, "box_beta")
    box_loss_weight: NotNegative = short(1.0, "box_lambda")  # lambda of Fast R-CNN, equation 1
    class_loss: Literal["cross_entropy", "focal"] = short("cross_entropy", "class_loss")
    class_weights: tuple[NotNegative, ...] | None = short(None, "class_weights")  # one per class; background has 1
    label_smoothing: Share = short(0.0, "label_smoothing")
    focal_gamma: NotNegative = short(2.0, "focal_gamma")  # Lin et al. 2017

    def build(
        self,
        stage: "StageConfig",
        roi: RoIAlignConfig | RoIPoolConfig,
        *,
        channels: int,
        strides: tuple[int, ...],
        num_classes: int,
    ) -> "BoxHead":
        """The head on maps of so many channels, for one stage."""
        layers, width = self.body.build(channels, roi.size)
        return BoxHead(self, stage, pooler(roi, strides), layers, width, num_classes)


@dataclass(frozen=True)
class StageConfig:
    """What a box head that stands alone, or one stage of a cascade, matches and regresses with."""

    positive_iou: IoULimit = short(0.5, "region_positive_iou")
    background_iou: tuple[Share, Share] = short((0.0, 0.5), "region_background_iou")
    delta_weights: Quad = short((10.0, 10.0, 5.0, 5.0), "box_delta_weights")  # deltas divided by 0.1, 0.1, 0.2, 0.2
    class_agnostic: bool = short(False, "class_agnostic")


class BoxPredictions(NamedTuple):
    """Predictions for each region: K + 1 logits, and deltas that move `boxes`.

    The deltas are per class (kd = K), or for all classes together (kd = 1).
    """

    boxes: Float[Tensor, "n p 4"]
    logits: Float[Tensor, "n p k1"]
    deltas: Float[Tensor, "n p kd 4"]


StagePredictions = tuple[BoxPredictions, ...]
"""The predictions of one stage, or of each stage of a cascade."""


class Head(nn.Module, ABC):
    """The second stage: everything from proposals to detections. `BoxHead` is Fast R-CNN's."""

    has_masks: bool = False

    @property
    def box_heads(self) -> "Sequence[BoxHead]":
        """Its box heads in order: one, those of a cascade, or none of R-CNN and SPPnet."""
        return ()

    def fuse_features(self, maps: Maps) -> RegionFeatures:
        """What regions are pooled from: the maps, and what the head computes from them for all regions together."""
        return RegionFeatures(maps)

    @abstractmethod
    def predict(self, features: RegionFeatures, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> StagePredictions:
        """Predictions for every proposal."""

    @abstractmethod
    def scored(self, predictions: StagePredictions, proposals: Proposals, config: PostprocessConfig) -> Scored:
        """Final scores of every region and class, and what their boxes are made of."""

    def postprocess(
        self, predictions: StagePredictions, proposals: Proposals, sizes: Int[Tensor, "n 2"], config: PostprocessConfig
    ) -> BatchDetections:
        """Detections from the predictions, without their masks."""
        return best_boxes(self.scored(predictions, proposals, config), sizes, config)

    def predict_masks(self, features: RegionFeatures, detections: BatchDetections) -> BatchDetections:
        """The same detections with their masks, where the head has any."""
        return detections

    @abstractmethod
    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: ReduceMean = no_reduce,
    ) -> Losses:
        """The losses by name; `sampler` takes the place of the head's own."""


class HeadLosses(NamedTuple):
    """The losses of a head, the sampled regions and their targets, and the head's predictions for them."""

    losses: Losses
    targets: RegionTargets
    predictions: BoxPredictions


class BoxHead(Head):
    """`regions` pools each box, `body` makes one vector of it, two linear layers the logits and the deltas."""

    class_weights: Tensor | None

    def __init__(
        self,
        config: BoxHeadConfig,
        stage: StageConfig,
        regions: nn.Module,
        body: nn.Module,
        width: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.stage = stage
        self.coder = BoxCoder(stage.delta_weights, config.delta_clamp, config.delta_clamp_two_sided, config.edges)
        self.regions: nn.Module = regions
        self.body = body
        self.classes = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 * (1 if stage.class_agnostic else num_classes))
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.deltas.bias)
        self.sampler: Sampler = RandomSampler(config.region_batch, config.region_positive_fraction)
        weights = config.class_weights
        if weights is not None and len(weights) != num_classes:
            raise UsageError(f"class_weights has {len(weights)} numbers: give one for each of {num_classes} classes.")
        if weights is not None and not any(weights):
            raise UsageError(f"class_weights is {weights}: give at least one class a weight above 0.")
        counts = None if weights is None else torch.tensor([1.0, *weights])
        self.register_buffer("class_weights", counts, persistent=False)

    @property
    def box_heads(self) -> "Sequence[BoxHead]":
        """Itself."""
        return (self,)

    def forward(self, features: RegionFeatures, boxes: Float[Tensor, "n p 4"]) -> BoxPredictions:
        """Predictions for boxes."""
        x = self.body(self.regions(features, boxes))
        return BoxPredictions(boxes, self.classes(x), self.deltas(x).unflatten(2, (-1, 4)))

    def predict(self, features: RegionFeatures, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> StagePredictions:
        """Predictions for the proposals, of a single stage."""
        return (self(features, proposals.boxes),)

    def scored(self, predictions: StagePredictions, proposals: Proposals, config: PostprocessConfig) -> Scored:
        """Probabilities of the only stage."""
        return probabilities(predictions[-1].logits, predictions[-1].deltas, proposals, self.coder, config)

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: ReduceMean = no_reduce,
    ) -> Losses:
        """The multi-task loss of sampled proposals."""
        features = self.fuse_features(maps)
        return self.compute_losses(features, proposals.boxes, proposals.valid, targets, sampler, mean).losses

    def compute_losses(
        self,
        features: RegionFeatures,
        boxes: Float[Tensor, "n p 4"],
        valid: Bool[Tensor, "n p"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: ReduceMean = no_reduce,
    ) -> HeadLosses:
        """The multi-task loss of regions sampled from these boxes (Fast R-CNN, section 2.3, equation 1).

        Where the boxes carry a gradient (`RPNConfig.proposal_gradient`) it also flows through their corners into the
        network that proposed them: Faster R-CNN's non-approximate joint training (section 3.2, iii).
        """
        config = self.config
        if config.append_ground_truth:
            boxes, valid = append_ground_truth(boxes, valid, targets)
        if sampler is None and config.region_sampling == "ohem":
            sampler = self._hardest(features, boxes, targets)
        goal = self.sample(boxes, valid, targets, sampler)
        predictions = self(features, gather_boxes(boxes, goal.index) if boxes.requires_grad else goal.boxes)
        kind = (goal.classes - 1).clamp(min=0) if predictions.deltas.shape[2] > 1 else torch.zeros_like(goal.classes)
        own = predictions.deltas.gather(2, kind[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        # All regions count, so that an image with few positives weighs no more than one with many.
        weight = one_over_sampled(goal.valid, mean)
        losses = {
            "class": class_loss(predictions.logits, goal.classes, goal.valid, weight, **self._class_loss_options),
            "box": config.box_loss_weight * self._box_loss(own, goal, targets, weight),
        }
        return HeadLosses(losses, goal, predictions)

    def sample(
        self, boxes: Float[Tensor, "n p 4"], valid: Bool[Tensor, "n p"], targets: Targets, sampler: Sampler | None
    ) -> RegionTargets:
        """Regions drawn from these boxes by the sampler, or the head's own, and what they should learn."""
        return region_targets(
            boxes,
            valid,
            targets,
            sampler or self.sampler,
            positive=self.stage.positive_iou,
            negative=self.stage.background_iou,
            coder=self.coder,
        )

    @property
    def _class_loss_options(self) -> dict[str, Any]:
        config = self.config
        gamma = config.focal_gamma if config.class_loss == "focal" else 0.0
        return {"gamma": gamma, "smoothing": config.label_smoothing, "class_weights": self.class_weights}

    def _box_loss(
        self, deltas: Float[Tensor, "n s 4"], goal: RegionTargets, targets: Targets, weight: Float[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        config = self.config
        if config.box_loss == "smooth_l1" or config.box_loss == "l1":
            beta = 0.0 if config.box_loss == "l1" else config.box_beta
            return box_loss(deltas, goal.deltas, goal.positive, weight, beta=beta)
        truth = gather_boxes(targets.boxes, goal.truth)
        return overlap_loss(self.coder.decode(deltas, goal.boxes), truth, goal.positive, weight, config.box_loss)

    @torch.no_grad()
    def _hardest(self, features: RegionFeatures, boxes: Float[Tensor, "n q 4"], targets: Targets) -> Sampler:
        """A sampler of the regions with the highest class loss (Shrivastava et al. 2016).

        Positives and negatives compete among themselves, as in mmdetection.
        """
        modes = [(module, module.training) for module in self.body.modules()]
        self.body.eval()  # ranking without dropout and without updating running statistics
        logits = self(features.each(Tensor.detach), boxes).logits
        # Autocast keeps its copies of weights, and those made here have no gradient (pytorch issue 112583).
        torch.clear_autocast_cache()
        for module, training in modes:  # frozen modules were in evaluation mode
            module.training = training
        config = self.config

        def sample(matches: Int[Tensor, "n q"], seeds: Int[Tensor, " n"]) -> Sample:
            labels = targets.labels.gather(1, matches.clamp(min=0)) + 1
            keys = class_losses(logits, labels.where(matches >= 0, 0), **self._class_loss_options)
            return largest(matches, keys, config.region_batch, config.region_positive_fraction)

        return sample
