"""Hybrid Task Cascade: boxes and masks refine each other, in the light of the whole picture (Chen et al. 2019).

It differs from Cascade Mask R-CNN in three things, each of which a field turns off:

1. Interleaved execution: a stage's mask head sees the boxes that its box head has just moved (section 3.1).
2. Mask information flow: it also reads what the mask heads before it have made of the same region (section 3.1).
3. A semantic branch reads all levels; what it sees is added to the features of every box and mask (section 3.2).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twostage.data.batch import Targets
from twostage.models.backbones.norm import ConvNorm
from twostage.models.fields import Fields
from twostage.models.filled import filled
from twostage.models.heads.box import BoxHead, Look, Maps
from twostage.models.heads.cascade import Cascade, drawing_otherwise, moved, scaled_gradient
from twostage.models.heads.detect import Found
from twostage.models.heads.mask import MaskHead, with_masks
from twostage.models.heads.semantic import SemanticBranch
from twostage.models.losses import Losses, Mean, alone
from twostage.models.proposals.rpn import Proposals
from twostage.models.targets.regions import region_targets
from twostage.models.targets.sampling import Sampler


class WithContext(nn.Module):
    """Pooled regions, and the same regions of the semantic branch's map added to them; that map is the last."""

    def __init__(self, regions: nn.Module, context: nn.Module) -> None:
        super().__init__()
        self.regions = regions
        self.context = context

    def forward(self, maps: Maps, boxes: Float[Tensor, "n p 4"]) -> Float[Tensor, "n p c s s"]:
        """Features of each box."""
        return self.regions(maps[:-1], boxes) + self.context(maps[-1:], boxes)


class HybridTaskCascade(nn.Module):
    """The boxes of a `Cascade`, mask heads that hand on what they see by `flows`, and a `semantic` branch or none."""

    knows_masks = True
    has_losses = True

    def __init__(
        self,
        fields: Fields,
        boxes: Sequence[BoxHead],
        masks: Sequence[MaskHead],
        semantic: SemanticBranch | None,
    ) -> None:
        super().__init__()
        self.fields = fields
        self.cascade = Cascade(fields, boxes)
        self.mask = nn.ModuleList(masks)
        width = masks[0].up.weight.shape[2]
        flows = [nn.Conv2d(width, mask.channels, 1) for mask in masks[1:]] if fields.htc_mask_flow else []
        for flow in flows:
            nn.init.kaiming_normal_(flow.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(flow.bias)  # type: ignore[arg-type]
        self.flows = nn.ModuleList(ConvNorm(flow, None, "relu") for flow in flows)
        self.semantic = semantic

    def reads(self, maps: Maps) -> Maps:
        """The maps, and behind them what the semantic branch sees."""
        return maps if self.semantic is None else (*maps, self.semantic.embedding(self.semantic.seen(maps)))

    def looks(self, maps: Maps, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> tuple[Look, ...]:
        """What each stage says of the boxes that the one before has moved."""
        return self.cascade.looks(maps, proposals, sizes)

    def detect(self, looks: tuple[Look, ...], proposals: Proposals, sizes: Int[Tensor, "n 2"], output: Fields) -> Found:
        """Detections as a cascade's."""
        return self.cascade.detect(looks, proposals, sizes, output)

    def masks(self, maps: Maps, found: Found) -> Found:
        """Detections with the mean of the masks of all stages, each with what the ones before have seen."""
        count = filled(found.valid)
        told = self.told(maps, found.boxes[:, :count], found.labels[:, :count], len(self.mask))
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
        """The losses of every stage's boxes and masks, each with its weight, and that of the semantic branch.

        Interleaved, masks learn from a draw of the moved boxes: at random with "ohem" too, for no head has told them.
        """
        losses: Losses = {}
        if self.semantic is not None:
            if targets.stuff is None:
                raise ValueError("A model with a semantic branch needs maps of stuff: these targets have none.")
            seen = self.semantic.seen(maps)
            losses["semantic"] = self.fields.semantic_lambda * self.semantic.loss(seen, targets.stuff, mean)
            maps = (*maps, self.semantic.embedding(seen))
        maps = [scaled_gradient(x, self.fields.cascade_gradient) for x in maps]
        boxes, valid = proposals.boxes, proposals.valid
        for k, (head, weight) in enumerate(zip(self.cascade.heads, self.fields.cascade_loss_weights, strict=True)):
            own = drawing_otherwise(targets, k)
            learned = head.learn(maps, boxes, valid, own, sampler, mean)
            boxes, valid = moved(head, learned, sizes)
            goal = learned.goal
            if self.fields.htc_interleaved:
                drawn = drawing_otherwise(own, len(self.mask))
                goal = region_targets(boxes, valid, drawn, sampler or head.sampler, head.fields)
            tell = partial(self._last_told, maps, stages=k + 1)
            stage = {**learned.losses, "mask": self.mask_heads[k].loss(goal, targets, tell, mean)}
            losses |= {f"{name}_{k + 1}": weight * loss for name, loss in stage.items()}
        return losses

    def told(
        self, maps: Maps, boxes: Float[Tensor, "n d 4"], labels: Int[Tensor, "n d"], stages: int
    ) -> list[Float[Tensor, "n d M M"]]:
        """The logits of the masks of the first so many stages; all of them see the same regions."""
        seen = self._seen(self.mask_heads[0].regions(maps, boxes).flatten(0, 1), range(stages))
        return [head.tell(x, labels) for head, x in zip(self.mask_heads, seen, strict=False)]

    def _last_told(
        self, maps: Maps, boxes: Float[Tensor, "n d 4"], labels: Int[Tensor, "n d"], *, stages: int
    ) -> Float[Tensor, "n d M M"]:
        """The logits of the last of them; without flow those before it need not look."""
        x = self.mask_heads[0].regions(maps, boxes).flatten(0, 1)
        *_, last = self._seen(x, range(0 if len(self.flows) else stages - 1, stages))
        return self.mask_heads[stages - 1].tell(last, labels)

    def _seen(self, x: Float[Tensor, "r c m m"], stages: range) -> Iterator[Float[Tensor, "r d m m"]]:
        """What the convolutions of each stage make of regions, and of what the stage before has made of them."""
        before: Tensor | None = None
        for k in stages:
            flow = None if before is None or not len(self.flows) else self.flows[k - 1](before)
            before = self.mask_heads[k].convs(x if flow is None else x + flow)
            yield before

    @property
    def mask_heads(self) -> list[MaskHead]:
        """The mask heads in order."""
        return cast(list[MaskHead], list(self.mask))
