"""The second stage: what each region is, and where exactly (Fast R-CNN, section 2).

Letters: N images, P regions an image, K classes; class 0 of K + 1 is background.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from twostage.data.batch import Targets
from twostage.errors import UsageError
from twostage.models.fields import Fields
from twostage.models.heads.detect import Found, detect
from twostage.models.losses import (
    Losses,
    Mean,
    alone,
    box_loss,
    class_loss,
    class_losses,
    one_over_sampled,
    overlap_loss,
)
from twostage.models.proposals.rpn import Proposals
from twostage.models.targets.regions import RegionTargets, joined, region_targets
from twostage.models.targets.sampling import RandomSampler, Sample, Sampler, largest
from twostage.ops.deltas import decode

Maps = Sequence[Float[Tensor, "n _ _ _"]]


class Look(NamedTuple):
    """What a box head says of each region: K + 1 logits, and deltas that move `boxes`.

    The deltas are per class (kd = K), or for all classes together (kd = 1).
    """

    boxes: Float[Tensor, "n p 4"]
    logits: Float[Tensor, "n p k1"]
    deltas: Float[Tensor, "n p kd 4"]


class Learned(NamedTuple):
    """The losses of a head, the regions they are of, and what it said of them."""

    losses: Losses
    goal: RegionTargets
    look: Look


class BoxHead(nn.Module):
    """`regions` pools each box, `body` makes one vector of it, two linear layers the logits and the deltas."""

    knows_masks = False
    has_losses = True
    class_weights: Tensor | None

    def __init__(self, fields: Fields, regions: nn.Module, body: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.fields = fields
        self.regions: nn.Module = regions
        self.body = body
        self.classes = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 * (1 if fields.class_agnostic else num_classes))
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.deltas.bias)
        self.sampler: Sampler = RandomSampler(fields.region_batch, fields.region_positive_fraction)
        weights = fields.class_weights
        if weights is not None and len(weights) != num_classes:
            raise UsageError(f"class_weights has {len(weights)} numbers: give one for each of {num_classes} classes")
        if weights is not None and not any(weights):
            raise UsageError(f"class_weights is {weights}: give at least one class a weight above 0")
        counts = None if weights is None else torch.tensor([1.0, *weights])
        self.register_buffer("class_weights", counts, persistent=False)

    def forward(self, maps: Maps, boxes: Float[Tensor, "n p 4"]) -> Look:
        """What it says of boxes."""
        x = self.body(self.regions(maps, boxes))
        return Look(boxes, self.classes(x), self.deltas(x).unflatten(2, (-1, 4)))

    def reads(self, maps: Maps) -> Maps:
        """The maps and nothing else."""
        return maps

    def looks(self, maps: Maps, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> tuple[Look, ...]:
        """The one look at the proposals."""
        return (self(maps, proposals.boxes),)

    def detect(self, looks: tuple[Look, ...], proposals: Proposals, sizes: Int[Tensor, "n 2"], output: Fields) -> Found:
        """The detections that come of it."""
        return detect(looks[-1].logits, looks[-1].deltas, proposals, sizes, output)

    def masks(self, maps: Maps, found: Found) -> Found:
        """The same: this head knows no masks."""
        return found

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: Mean = alone,
    ) -> Losses:
        """The multi-task loss of sampled proposals."""
        return self.learn(maps, proposals.boxes, proposals.valid, targets, sampler, mean).losses

    def learn(
        self,
        maps: Maps,
        boxes: Float[Tensor, "n p 4"],
        valid: Bool[Tensor, "n p"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: Mean = alone,
    ) -> Learned:
        """The multi-task loss of boxes sampled from these (Fast R-CNN, section 2.3, equation 1).

        With `proposal_gradient` it also flows through their corners into the network that proposed them: Faster
        R-CNN's non-approximate joint training (section 3.2, iii).
        """
        fields = self.fields
        boxes, valid = joined(boxes, valid, targets, fields)
        if sampler is None and fields.region_sampling == "ohem":
            sampler = self._hardest(maps, boxes, targets)
        goal = region_targets(boxes, valid, targets, sampler or self.sampler, fields)
        regions = goal.boxes
        if fields.proposal_gradient:
            regions = boxes.gather(1, goal.index[..., None].expand(-1, -1, 4))
        look = self(maps, regions)
        kind = (goal.classes - 1).clamp(min=0) if look.deltas.shape[2] > 1 else torch.zeros_like(goal.classes)
        own = look.deltas.gather(2, kind[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        # All regions count, so that an image with few positives weighs no more than one with many.
        weight = one_over_sampled(goal.valid, mean)
        losses = {
            "class": class_loss(look.logits, goal.classes, goal.valid, weight, **self._how),
            "box": fields.box_lambda * self._box_loss(own, goal, targets, weight),
        }
        return Learned(losses, goal, look)

    @property
    def _how(self) -> dict[str, Any]:
        """How classes are learned."""
        fields = self.fields
        gamma = fields.focal_gamma if fields.class_loss == "focal" else 0.0
        return {"gamma": gamma, "smoothing": fields.label_smoothing, "class_weights": self.class_weights}

    def _box_loss(
        self, deltas: Float[Tensor, "n s 4"], goal: RegionTargets, targets: Targets, weight: Float[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        fields = self.fields
        if fields.box_loss == "smooth_l1" or fields.box_loss == "l1":
            beta = 0.0 if fields.box_loss == "l1" else fields.box_beta
            return box_loss(deltas, goal.deltas, goal.positive, weight, beta=beta)
        moved = decode(
            deltas,
            goal.boxes,
            weights=fields.box_delta_weights,
            clamp=fields.delta_clamp,
            two_sided=fields.delta_clamp_two_sided,
        )
        truth = targets.boxes.gather(1, goal.truth[..., None].expand(-1, -1, 4))
        return overlap_loss(moved, truth, goal.positive, weight, fields.box_loss)

    @torch.no_grad()
    def _hardest(self, maps: Maps, boxes: Float[Tensor, "n q 4"], targets: Targets) -> Sampler:
        """A sampler that takes what is told worst (Shrivastava et al. 2016), by the class loss of every box.

        Positives and negatives compete among themselves, as in mmdetection.
        """
        modes = [(module, module.training) for module in self.body.modules()]
        self.body.eval()  # no dropout to rank by, no second update of running statistics
        logits = self([x.detach() for x in maps], boxes).logits
        for module, training in modes:  # some of them may rest
            module.training = training
        fields = self.fields

        def sample(matches: Int[Tensor, "n q"], seeds: Int[Tensor, " n"]) -> Sample:
            labels = targets.labels.gather(1, matches.clamp(min=0)) + 1
            keys = class_losses(logits, labels.where(matches >= 0, 0), **self._how)
            return largest(matches, keys, fields.region_batch, fields.region_positive_fraction)

        return sample
