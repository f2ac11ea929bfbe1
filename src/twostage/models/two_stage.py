"""The two-stage detector: three parts, each of which can be replaced (Faster R-CNN, Figure 2).

    batch ── backbone ──> maps ── RPN ──> proposals ── head ──> detections

Fast R-CNN is the same without the RPN: its proposals come with the batch.
Every shape follows from the configuration: N images, P proposals, D detections, padded, with a validity mask.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import pad

from twostage.data.batch import Batch, GivenProposals, Targets
from twostage.errors import UsageError
from twostage.models.config import StagewiseConfig, TwoStageConfig
from twostage.models.heads.box import BoxPredictions, Head, StagePredictions
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.image import Normalize
from twostage.models.losses import Losses, ReduceMean, no_reduce
from twostage.models.proposals.rpn import RPN, AnchorPredictions, Proposals
from twostage.models.regions.pooling import Maps
from twostage.models.targets.sampling import Sampler
from twostage.ops.boxes import clip

PARTS = frozenset(("backbone", "rpn", "head"))


class Samplers(NamedTuple):
    """How anchors and regions are sampled in training; None is the random sampler of the configuration."""

    anchors: Sampler | None = None
    regions: Sampler | None = None


RANDOM = Samplers()


class Proposed(NamedTuple):
    """The first stage of a training step, on the pixels of the batch."""

    maps: Maps
    anchors: AnchorPredictions | None
    proposals: Proposals


class Stages(NamedTuple):
    """Every stage of one prediction, on the pixels of the batch."""

    maps: Maps
    anchors: AnchorPredictions | None  # None where the proposals came with the batch
    proposals: Proposals
    predictions: StagePredictions
    detections: BatchDetections


class TwoStage(nn.Module):
    """A two-stage detector of three parts: `backbone`, `rpn` and `head`.

    Without an `rpn` it is Fast R-CNN (Girshick 2015), and needs proposals in every batch; with one, proposals that come
    with a batch take the place of its own.
    """

    def __init__(
        self,
        config: TwoStageConfig | StagewiseConfig,
        num_classes: int,
        *,
        backbone: nn.Module,
        rpn: RPN | None,
        head: Head,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize(config.image)
        self.backbone = backbone
        self.rpn = rpn
        self.head = head

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return self.head.has_masks

    def forward(
        self,
        batch: Batch,
        targets: Targets | None = None,
        samplers: Samplers = RANDOM,
        mean: ReduceMean = no_reduce,
        parts: Collection[str] = PARTS,
    ) -> Losses | BatchDetections:
        """A dictionary of losses in training mode, detections in evaluation mode.

        `mean` averages a number over processes that share a batch: the mean of their losses is then that of the whole
        batch. `parts` are those that are trained, of `PARTS` or "boxes" (the last layer of the head): losses of the
        others are left out.
        """
        if not self.training:
            return self.stages(batch).detections
        if targets is None:
            raise ValueError("A model in training mode needs targets; call model.eval() for detections.")
        maps = self.features(batch)
        anchors, proposals = self.propose(maps, batch, train_rpn="rpn" in parts)
        return self.losses(Proposed(maps, anchors, proposals), batch.sizes, targets, samplers, mean, parts)

    def stages(self, batch: Batch, config: PostprocessConfig | None = None) -> Stages:
        """The forward pass with everything it computed; `config` replaces the model's own post-processing."""
        return self.stages_from(self.features(batch), batch, config or self.config.postprocess)

    def stages_from(self, maps: Maps, batch: Batch, config: PostprocessConfig) -> Stages:
        """The same from the feature maps on."""
        anchors, proposals = self.propose(maps, batch)
        return self._second_stage(maps, anchors, proposals, batch.sizes, config)

    def suppress_again(self, stages: Stages, sizes: Int[Tensor, "n 2"], config: PostprocessConfig) -> Stages:
        """The stages from the anchors' predictions on, with both suppressions on the CPU, where NMS has no limit."""
        proposals = stages.proposals
        if self.rpn is not None and stages.anchors is not None:
            there = proposals.to("cpu").originals
            proposals = self.rpn.propose(stages.anchors.to("cpu"), sizes.cpu(), there)
        proposals = proposals.to(sizes.device)
        return self._second_stage(stages.maps, stages.anchors, proposals, sizes, config, suppress_on="cpu")

    def _second_stage(
        self,
        maps: Maps,
        anchors: AnchorPredictions | None,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        config: PostprocessConfig,
        suppress_on: str | None = None,
    ) -> Stages:
        features = self.head.fuse_features(maps)
        predictions = self.head.predict(features, proposals, sizes)
        device = torch.device(suppress_on) if suppress_on else sizes.device
        there = tuple(BoxPredictions(*(x.to(device) for x in stage)) for stage in predictions)
        detections = self.head.postprocess(there, proposals.to(device), sizes.to(device), config)
        detections = self.head.predict_masks(features, detections.each(lambda x: x.to(sizes.device)))
        return Stages(maps, anchors, proposals, predictions, detections)

    def features(self, batch: Batch) -> Maps:
        """Feature maps of the normalised images."""
        return self.backbone(self.normalize(batch))

    def propose(
        self, maps: Maps, batch: Batch, *, train_rpn: bool = False
    ) -> tuple[AnchorPredictions | None, Proposals]:
        """The RPN's predictions for every anchor and its proposals, or the proposals that came with the batch.

        With those the RPN is not run, unless it is trained. Raises UsageError where there is neither.
        """
        given = None
        if batch.proposals is not None:
            given = as_proposals(batch.proposals, batch.sizes)._replace(originals=batch.originals)
        if self.rpn is None or (given is not None and not train_rpn):
            if given is None:
                raise UsageError("This detector has no RPN: give proposals with the batch.")
            return None, given
        anchors = self.rpn.predict(maps, batch.canvas, batch.sizes)
        return anchors, self.rpn.propose(anchors, batch.sizes, batch.originals) if given is None else given

    def losses(
        self,
        stages: Proposed | Stages,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        samplers: Samplers = RANDOM,
        mean: ReduceMean = no_reduce,
        parts: Collection[str] = PARTS,
    ) -> Losses:
        """The four losses of Faster R-CNN's joint training (section 3.2), or those of the parts that are trained."""
        losses: Losses = {}
        if self.rpn is not None and stages.anchors is not None and "rpn" in parts:
            losses |= self.rpn.losses(stages.anchors, sizes, targets, samplers.anchors, mean)
        if "head" in parts or "boxes" in parts:
            losses |= self.head.losses(stages.maps, stages.proposals, sizes, targets, samplers.regions, mean)
        return losses


def as_proposals(given: GivenProposals, sizes: Int[Tensor, "n 2"]) -> Proposals:
    """Proposals from elsewhere, clipped to each image; the place in their list stands for the anchor."""
    if not given.scores.shape[1]:  # the stages behind need one place, which may be padding
        given = GivenProposals(pad(given.boxes, (0, 0, 0, 1)), pad(given.scores, (0, 1)), pad(given.valid, (0, 1)))
    place = torch.arange(given.scores.shape[1], device=sizes.device).expand(given.scores.shape)
    overflow = torch.zeros_like(sizes[:, 0], dtype=torch.bool)
    return Proposals(clip(given.boxes, sizes), given.scores, place, given.valid, overflow)
