"""The composition: an image flows through four rooms, and each may be another part (Faster R-CNN, Figure 2).

    batch ── backbone ──> maps ── proposal network ──> proposals ── regions ──> features ── head ──> detections

Fast R-CNN is the same without the network that proposes: its proposals come with the batch.
Every shape follows from the configuration: N images, P proposals, D detections, padded, with a validity mask.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twostage.data.batch import Batch, GivenProposals, Targets
from twostage.errors import UsageError
from twostage.models.fields import Fields
from twostage.models.heads.box import BoxHead
from twostage.models.heads.detect import Found, detect
from twostage.models.losses import Mean, alone, box_loss, class_loss, one_over_sampled
from twostage.models.proposals.rpn import RPN, Dense, Proposals
from twostage.models.targets.regions import joined, region_targets
from twostage.models.targets.sampling import RandomSampler, Sampler
from twostage.ops.boxes import clip

Maps = tuple[Float[Tensor, "n _ _ _"], ...]
Losses = dict[str, Float[Tensor, ""]]


class Samplers(NamedTuple):
    """How anchors and regions are sampled in training; None is the random draw of the fields."""

    anchors: Sampler | None = None
    regions: Sampler | None = None


RANDOM = Samplers()


class Stages(NamedTuple):
    """Every stage of one prediction, on the pixels of the batch."""

    maps: Maps
    dense: Dense | None  # None where the proposals came with the batch
    proposals: Proposals
    logits: Float[Tensor, "n p k1"]
    deltas: Float[Tensor, "n p kd 4"]
    found: Found


class TwoStage(nn.Module):
    """A two-stage detector of four parts: `backbone`, `rpn`, `regions` and `head`.

    Without an `rpn` it is Fast R-CNN (Girshick 2015), and needs proposals in every batch; with one, proposals that come
    with a batch take the place of its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        fields: Fields,
        num_classes: int,
        *,
        backbone: nn.Module,
        rpn: RPN | None,
        regions: nn.Module,
        head: BoxHead,
    ) -> None:
        super().__init__()
        self.fields = fields
        self.num_classes = num_classes
        self.dtype: torch.dtype | None = None  # of a prepared model's maps; None: that of the weights, or autocast's
        self.recorded: Callable[..., Any] | None = None  # of a prepared model on a GPU: inference.graphs.Recordings
        self.learns: tuple[str, ...] = ("backbone", "rpn", "head")  # whose losses count; see training.optimiser
        self.backbone = backbone
        self.rpn = rpn
        self.regions = regions
        self.head = head
        self.region_sampler: Sampler = RandomSampler(fields.region_batch, fields.region_positive_fraction)
        self.register_buffer("mean", torch.tensor(fields.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(fields.std)[:, None, None], persistent=False)

    def forward(
        self, batch: Batch, targets: Targets | None = None, samplers: Samplers = RANDOM, mean: Mean = alone
    ) -> Losses | Found:
        """A dictionary of losses in training mode, detections in evaluation mode.

        `mean` is for processes that share a batch: the mean of their losses is then that of the whole batch.
        """
        if not self.training:
            return self.stages(batch).found
        if targets is None:
            raise ValueError("A model in training mode needs targets; call model.eval() for detections.")
        maps = self.features(batch)
        dense, proposals = self.proposals(maps, batch)
        return self.losses(maps, dense, proposals, batch.sizes, targets, samplers, mean)

    def stages(self, batch: Batch, output: Fields | None = None) -> Stages:
        """The forward pass with everything it computed; `output` replaces the fields of the last step."""
        maps = self.features(batch)
        dense, proposals = self.proposals(maps, batch)
        logits, deltas = self.head(self.regions(maps, proposals.boxes))
        found = detect(logits, deltas, proposals, batch.sizes, output or self.fields)
        return Stages(maps, dense, proposals, logits, deltas, found)

    def features(self, batch: Batch) -> Maps:
        """Feature maps of the normalised images; padding is 0 after normalisation, as if it were the mean colour."""
        images = (batch.images - self.mean).div_(self.std)
        images.mul_(_on_image(batch.sizes, images.shape[2], images.shape[3])[:, None])
        return self.backbone(images if self.dtype is None else images.to(self.dtype))

    def proposals(self, maps: Maps, batch: Batch) -> tuple[Dense | None, Proposals]:
        """What the network says of every anchor, and the best of its boxes, or the boxes that came with the batch.

        With those the network is not asked, unless it learns. Raises UsageError where there is neither.
        """
        given = None if batch.proposals is None else as_proposals(batch.proposals, batch.sizes)
        if self.rpn is None or (given is not None and not (self.training and "rpn" in self.learns)):
            if given is None:
                raise UsageError("This detector has no network that proposes: give proposals with the batch.")
            return None, given
        dense = self.rpn(maps, batch.canvas, batch.sizes)
        return dense, self.rpn.propose(dense, batch.sizes) if given is None else given

    def losses(
        self,
        maps: Maps,
        dense: Dense | None,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        samplers: Samplers = RANDOM,
        mean: Mean = alone,
    ) -> Losses:
        """The four losses of Faster R-CNN's joint training (section 3.2), or those of the parts that learn."""
        losses: Losses = {}
        if self.rpn is not None and dense is not None and "rpn" in self.learns:
            losses |= self.rpn.losses(dense, sizes, targets, samplers.anchors, mean)
        if "head" in self.learns or "boxes" in self.learns:
            losses |= self.region_losses(maps, proposals, targets, samplers.regions, mean)
        return losses

    def region_losses(
        self, maps: Maps, proposals: Proposals, targets: Targets, sampler: Sampler | None = None, mean: Mean = alone
    ) -> Losses:
        """The multi-task loss of sampled regions (Fast R-CNN, section 2.3, equation 1).

        With `proposal_gradient` it also flows through the corners of the regions into the network that proposed them:
        Faster R-CNN's non-approximate joint training (section 3.2, iii).
        """
        fields = self.fields
        boxes, valid = joined(proposals.boxes, proposals.valid, targets, fields)
        goal = region_targets(boxes, valid, targets, sampler or self.region_sampler, fields)
        regions = goal.boxes
        if fields.proposal_gradient:
            regions = boxes.gather(1, goal.index[..., None].expand(-1, -1, 4))
        logits, deltas = self.head(self.regions(maps, regions))
        kind = (goal.classes - 1).clamp(min=0) if deltas.shape[2] > 1 else torch.zeros_like(goal.classes)
        own = deltas.gather(2, kind[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        # All regions count, so that an image with few positives weighs no more than one with many.
        weight = one_over_sampled(goal.valid, mean)
        return {
            "class": class_loss(logits, goal.classes, goal.valid, weight),
            "box": fields.box_lambda * box_loss(own, goal.deltas, goal.positive, weight, beta=fields.box_beta),
        }


def as_proposals(given: GivenProposals, sizes: Int[Tensor, "n 2"]) -> Proposals:
    """Proposals from elsewhere, clipped to each image; the place in their list stands for the anchor."""
    place = torch.arange(given.scores.shape[1], device=sizes.device).expand(given.scores.shape)
    overflow = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    return Proposals(clip(given.boxes, sizes), given.scores, place, given.valid, overflow)


def _on_image(sizes: Int[Tensor, "n 2"], height: int, width: int) -> Float[Tensor, "n {height} {width}"]:
    """1 on each image, 0 on its padding."""
    y = torch.arange(height, device=sizes.device)
    x = torch.arange(width, device=sizes.device)
    return ((y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None, :]).float()
