"""The composition: an image flows through four rooms, and each may be another part (Faster R-CNN, Figure 2).

    batch ── backbone ──> maps ── proposal network ──> proposals ── regions ──> features ── head ──> detections

Every shape follows from the configuration: N images, P proposals, D detections, padded, with a validity mask.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twostage.data.batch import Batch, Targets
from twostage.models.fields import Fields
from twostage.models.heads.box import BoxHead
from twostage.models.heads.detect import Found, detect
from twostage.models.losses import Mean, alone, box_loss, class_loss, one_over_sampled
from twostage.models.proposals.rpn import RPN, Dense, Proposals
from twostage.models.targets.regions import region_targets
from twostage.models.targets.sampling import RandomSampler, Sampler

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
    dense: Dense
    proposals: Proposals
    logits: Float[Tensor, "n p k1"]
    deltas: Float[Tensor, "n p kd 4"]
    found: Found


class TwoStage(nn.Module):
    """A two-stage detector of four parts: `backbone`, `rpn`, `regions` and `head`."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, fields: Fields, num_classes: int, *, backbone: nn.Module, rpn: RPN, regions: nn.Module, head: BoxHead
    ) -> None:
        super().__init__()
        self.fields = fields
        self.num_classes = num_classes
        self.dtype: torch.dtype | None = None  # of a prepared model's maps; None: that of the weights, or autocast's
        self.recorded: Callable[..., Any] | None = None  # of a prepared model on a GPU: inference.graphs.Recordings
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
        dense = self.rpn(maps, tuple(batch.images.shape[2:]), batch.sizes)
        return self.losses(maps, dense, self.rpn.propose(dense, batch.sizes), batch.sizes, targets, samplers, mean)

    def stages(self, batch: Batch, output: Fields | None = None) -> Stages:
        """The forward pass with everything it computed; `output` replaces the fields of the last step."""
        maps = self.features(batch)
        dense = self.rpn(maps, tuple(batch.images.shape[2:]), batch.sizes)
        proposals = self.rpn.propose(dense, batch.sizes)
        logits, deltas = self.head(self.regions(maps, proposals.boxes))
        found = detect(logits, deltas, proposals, batch.sizes, output or self.fields)
        return Stages(maps, dense, proposals, logits, deltas, found)

    def features(self, batch: Batch) -> Maps:
        """Feature maps of the normalised images; padding is 0 after normalisation, as if it were the mean colour."""
        images = (batch.images - self.mean).div_(self.std)
        images.mul_(_on_image(batch.sizes, images.shape[2], images.shape[3])[:, None])
        return self.backbone(images if self.dtype is None else images.to(self.dtype))

    def losses(
        self,
        maps: Maps,
        dense: Dense,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        samplers: Samplers = RANDOM,
        mean: Mean = alone,
    ) -> Losses:
        """The four losses of Faster R-CNN's joint training (section 3.2), from a forward pass's stages."""
        fields = self.fields
        goal = region_targets(
            proposals.boxes, proposals.valid, targets, samplers.regions or self.region_sampler, fields
        )
        logits, deltas = self.head(self.regions(maps, goal.boxes))
        kind = (goal.classes - 1).clamp(min=0) if deltas.shape[2] > 1 else torch.zeros_like(goal.classes)
        own = deltas.gather(2, kind[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        # All regions count, so that an image with few positives weighs no more than one with many.
        weight = one_over_sampled(goal.valid, mean)
        return self.rpn.losses(dense, sizes, targets, samplers.anchors, mean) | {
            "class": class_loss(logits, goal.classes, goal.valid, weight),
            "box": fields.box_lambda * box_loss(own, goal.deltas, goal.positive, weight, beta=fields.box_beta),
        }


def _on_image(sizes: Int[Tensor, "n 2"], height: int, width: int) -> Float[Tensor, "n {height} {width}"]:
    """1 on each image, 0 on its padding."""
    y = torch.arange(height, device=sizes.device)
    x = torch.arange(width, device=sizes.device)
    return ((y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None, :]).float()
