"""A cascade of box heads, each refining what the one before has found (Cascade R-CNN, Cai and Vasconcelos 2018).

A head that learns at IoU 0.5 gives boxes of a quality that a head at 0.6 can learn from, and so on: the thresholds rise
while there are positives enough, because every stage samples anew from the boxes that the last one has moved.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from twostage.data.batch import Targets
from twostage.errors import UsageError
from twostage.models.fields import Fields
from twostage.models.filled import filled
from twostage.models.heads.box import BoxHead, Learned, Look, Maps
from twostage.models.heads.detect import Found, detect
from twostage.models.heads.mask import MaskHead, with_masks
from twostage.models.losses import Losses, Mean, alone
from twostage.models.proposals.rpn import Proposals
from twostage.models.targets.sampling import Sampler
from twostage.ops.boxes import clip
from twostage.ops.deltas import decode


class Cascade(nn.Module):
    """Box heads one after the other, and with `masks` a mask head beside each (Cascade Mask R-CNN, 2019)."""

    has_losses = True

    def __init__(self, fields: Fields, boxes: Sequence[BoxHead], masks: Sequence[MaskHead] = ()) -> None:
        super().__init__()
        self.fields = fields
        self.boxes = nn.ModuleList(boxes)
        self.mask = nn.ModuleList(masks)

    @property
    def knows_masks(self) -> bool:
        """Whether there are mask heads."""
        return len(self.mask) > 0

    def reads(self, maps: Maps) -> Maps:
        """The maps and nothing else."""
        return maps

    def looks(self, maps: Maps, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> tuple[Look, ...]:
        """What each stage says of the boxes that the one before has moved."""
        first, *later = self.heads
        found, before = [first(maps, proposals.boxes)], first
        for head in later:
            found.append(head(maps, refined(before, found[-1], sizes)))
            before = head
        return tuple(found)

    def detect(self, looks: tuple[Look, ...], proposals: Proposals, sizes: Int[Tensor, "n 2"], output: Fields) -> Found:
        """Detections from the mean of all stages' probabilities and the last one's boxes."""
        last = looks[-1]
        probabilities = torch.stack([look.logits.float().softmax(dim=2) for look in looks]).mean(dim=0)
        fields = replace(output, box_delta_weights=self.heads[-1].fields.box_delta_weights)
        # The softmax of a logarithm is the probability itself.
        return detect(probabilities.log(), last.deltas, proposals._replace(boxes=last.boxes), sizes, fields)

    def masks(self, maps: Maps, found: Found) -> Found:
        """Detections with the mean of the masks of all stages, which see the same regions."""
        if not self.knows_masks:
            return found
        count = filled(found.valid)
        x = self.mask_heads[0].regions(maps, found.boxes[:, :count]).flatten(0, 1)
        told = [head.tell(head.convs(x), found.labels[:, :count]) for head in self.mask_heads]
        return with_masks(found, torch.stack(told).float().sigmoid().mean(dim=0))

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: Mean = alone,
    ) -> Losses:
        """The losses of every stage, each with its weight; a stage learns from boxes sampled of the last one's."""
        losses: Losses = {}
        maps = [scaled_gradient(x, self.fields.cascade_gradient) for x in maps]
        boxes, valid = proposals.boxes, proposals.valid
        for k, (head, weight) in enumerate(zip(self.heads, self.fields.cascade_loss_weights, strict=True)):
            own = drawing_otherwise(targets, k)
            learned = head.learn(maps, boxes, valid, own, sampler, mean)
            stage = dict(learned.losses)
            if self.knows_masks:
                mask = self.mask_heads[k]
                stage["mask"] = mask.loss(learned.goal, targets, partial(mask, maps), mean)
            losses |= {f"{name}_{k + 1}": weight * loss for name, loss in stage.items()}
            boxes, valid = moved(head, learned, sizes)
        return losses

    @property
    def heads(self) -> list[BoxHead]:
        """The box heads in order."""
        return cast(list[BoxHead], list(self.boxes))

    @property
    def mask_heads(self) -> list[MaskHead]:
        """The mask heads in order."""
        return cast(list[MaskHead], list(self.mask))


_OF_STAGES = {
    "region_positive_iou": "cascade_ious",
    "region_background_iou": "cascade_ious",
    "box_delta_weights": "cascade_delta_weights",
}


def stage_fields(fields: Fields) -> list[Fields]:
    """What each stage's head is told. Raises UsageError where stages and their values are not of one number."""
    values = (fields.cascade_ious, fields.cascade_delta_weights, fields.cascade_loss_weights)
    if len({len(value) for value in values}) > 1:
        numbers = ", ".join(map(str, map(len, values)))
        raise UsageError(
            f"cascade_ious, cascade_delta_weights and cascade_loss_weights have {numbers} values: give each one a stage"
        )
    plain = Fields()
    for name, instead in _OF_STAGES.items():
        if getattr(fields, name) != getattr(plain, name):
            raise UsageError(f"{name} is of a head that stands alone: a cascade has {instead}, a value for each stage")
    if not fields.class_agnostic:
        raise UsageError("class_agnostic is false: a cascade moves a box before its class is known, leave it true")
    return [
        replace(
            fields,
            region_positive_iou=iou,
            region_background_iou=(0.0, iou),
            box_delta_weights=weights,
            # Once: of many objects little room would be left for what the stage before has moved.
            region_truth=fields.region_truth and k == 0,
        )
        for k, (iou, weights) in enumerate(zip(fields.cascade_ious, fields.cascade_delta_weights, strict=True))
    ]


@torch.no_grad()
def refined(head: BoxHead, look: Look, sizes: Int[Tensor, "n 2"]) -> Float[Tensor, "n p 4"]:
    """The boxes of a look, moved by its deltas; no gradient flows through them."""
    fields = head.fields
    boxes = decode(
        look.deltas[:, :, 0],
        look.boxes,
        weights=fields.box_delta_weights,
        clamp=fields.delta_clamp,
        two_sided=fields.delta_clamp_two_sided,
    )
    return clip(boxes, sizes)


def moved(
    head: BoxHead, learned: Learned, sizes: Int[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n s 4"], Bool[Tensor, "n s"]]:
    """The sampled boxes as the head has moved them, and which of them are there."""
    return refined(head, learned.look, sizes), learned.goal.valid


def drawing_otherwise(targets: Targets, stage: int) -> Targets:
    """The same targets with seeds of the stage's own."""
    return replace(targets, seeds=targets.seeds ^ (stage * 0x9E3779B97F4A7))


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """The same map; of the gradient that reaches it only so much goes on."""
    if factor == 1 or not x.requires_grad:
        return x
    same = x.view_as(x)
    same.register_hook(lambda gradient: gradient * factor)
    return same
