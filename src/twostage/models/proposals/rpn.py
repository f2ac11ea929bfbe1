"""The region proposal network (Faster R-CNN, section 3).

1. Slide a 3 x 3 convolution over each map; at every position score k anchors and predict 4 deltas for each.
2. Training: label the anchors, sample some, learn objectness and deltas.
3. Keep the best-scored anchors of each level, move them by their deltas, clip them to the image.
4. Drop boxes below a minimum size, suppress overlaps within each level, keep the best of all levels.

Letters: N images, A anchors of all levels, S sampled anchors, P proposals (padded), G ground-truth boxes (padded).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from twostage.data.batch import Targets
from twostage.models.backbones.norm import conv_norm
from twostage.models.fields import Fields
from twostage.models.fused import side_by_side
from twostage.models.losses import Mean, alone, box_loss, objectness_loss, one_over_sampled
from twostage.models.proposals.anchors import Anchors
from twostage.models.targets.matching import match
from twostage.models.targets.sampling import RandomSampler, Sampler
from twostage.ops.boxes import clip, precise
from twostage.ops.deltas import decode, encode
from twostage.ops.nms import Kept, nms


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first; `anchors` is the index of the anchor each came from.

    `overflow` marks images whose suppression may not have come to its end (see `ops.nms.Kept`).
    """

    boxes: Float[Tensor, "n p 4"]
    scores: Float[Tensor, "n p"]
    anchors: Int[Tensor, "n p"]
    valid: Bool[Tensor, "n p"]
    overflow: Bool[Tensor, " n"]


class Dense(NamedTuple):
    """What the network says of every anchor, level by level in the anchors' order."""

    logits: list[Float[Tensor, "n _"]]
    deltas: list[Float[Tensor, "n _ 4"]]
    anchors: list[Float[Tensor, "_ 4"]]
    inside: list[Bool[Tensor, "n _"]]


class RPN(nn.Module):
    """Proposal source of Faster R-CNN; the same head slides over every level."""

    def __init__(self, fields: Fields, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.fields = fields
        self.anchors = Anchors(fields, strides)
        each = self.anchors.per_position[0]
        width = fields.rpn_channels or channels
        inputs = [channels] + [width] * (fields.rpn_convs - 1)
        self.convs = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1) for c in inputs)
        self.objectness = nn.Conv2d(width, each * (2 if fields.rpn_objectness == "softmax" else 1), 1)
        self.deltas = nn.Conv2d(width, each * 4, 1)
        self.sampler: Sampler = RandomSampler(fields.rpn_batch, fields.rpn_positive_fraction)
        for layer in [*self.convs, self.objectness, self.deltas]:
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, maps: Sequence[Float[Tensor, "n c _ _"]], canvas: tuple[int, int], sizes: Int[Tensor, "n 2"]
    ) -> Dense:
        """Objectness and deltas of every anchor."""
        logits, deltas = [], []
        for x in maps:
            for conv in self.convs:
                x = conv_norm(x, conv, activation="relu")
            both = side_by_side(x, self.objectness, self.deltas)
            scores, moves = (found.permute(0, 2, 3, 1) for found in both)
            if self.fields.rpn_objectness == "softmax":
                # Softmax over (background, object) is the sigmoid of their difference.
                background, foreground = scores.unflatten(3, (-1, 2)).unbind(4)
                scores = foreground - background
            logits.append(scores.flatten(1))
            deltas.append(moves.flatten(1, 3).unflatten(1, (-1, 4)))
        return Dense(logits, deltas, *self.anchors(maps, canvas, sizes))

    def propose(self, dense: Dense, sizes: Int[Tensor, "n 2"]) -> Proposals:
        """The best boxes of each image, at most `rpn_keep_train` or `rpn_keep_test`.

        No gradient passes through them but with `proposal_gradient`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.fields.proposal_gradient):
            return self._propose(dense, sizes)

    def _propose(self, dense: Dense, sizes: Int[Tensor, "n 2"]) -> Proposals:
        fields = self.fields
        top = fields.rpn_top_train if self.training else fields.rpn_top_test
        keep = fields.rpn_keep_train if self.training else fields.rpn_keep_test
        levels = len(dense.logits)
        scores, places = [], []
        first = 0
        for logit, inside in zip(dense.logits, dense.inside, strict=True):
            # A level may have fewer anchors than `top`: padding to `top` keeps the shape free of the map's size.
            best = pad(precise(logit).masked_fill(~inside, -torch.inf), (0, top), value=-torch.inf).topk(top, dim=1)
            scores.append(best.values)
            places.append((best.indices + first).clamp(max=first + logit.shape[1] - 1))
            first += logit.shape[1]
        # [l * n, top], as all that follows: each level of each image is suppressed alone.
        score, place = torch.cat(scores), torch.cat(places)
        of_image = place.unflatten(0, (levels, -1)).transpose(0, 1).flatten(1)
        delta = torch.cat(dense.deltas, dim=1).gather(1, of_image[..., None].expand(-1, -1, 4))
        delta = delta.unflatten(1, (levels, top)).transpose(0, 1).flatten(0, 1)
        box = decode(
            delta,
            torch.cat(dense.anchors)[place],
            weights=fields.rpn_delta_weights,
            clamp=fields.delta_clamp,
            two_sided=fields.delta_clamp_two_sided,
        )
        box = clip(box, sizes.repeat(levels, 1))
        sides = box[..., 2:] - box[..., :2]
        valid = (sides >= fields.rpn_min_size).all(dim=-1) & (score > -torch.inf)
        valid &= score.sigmoid() >= fields.rpn_score_threshold
        kept = nms(box, score, None, valid, iou=fields.rpn_nms, top=min(keep, top))
        return _best_of_levels(box, score, place, kept, levels=levels, keep=keep)

    def losses(
        self,
        dense: Dense,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: Mean = alone,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses of objectness and boxes over the sampled anchors (section 3.1.2, equation 1)."""
        fields = self.fields
        anchors = torch.cat(dense.anchors)
        with torch.no_grad():
            inside = torch.cat(dense.inside, dim=1)
            matches = match(
                anchors,
                targets.boxes,
                targets.valid,
                positive=fields.rpn_positive_iou,
                negative=(0.0, fields.rpn_negative_iou),
                keep_best=True,
                usable=inside if fields.rpn_cross_boundary else inside & _within(anchors, sizes),
            )
            sample = (sampler or self.sampler)(matches, targets.seeds)
            truth = matches.gather(1, sample.index).clamp(min=0)
            goal = encode(
                targets.boxes.gather(1, truth[..., None].expand(-1, -1, 4)),
                anchors[sample.index],
                weights=fields.rpn_delta_weights,
            )
            class_weight, box_weight = self._weights(sample.valid, inside, mean)
        logits = torch.cat(dense.logits, dim=1).gather(1, sample.index)
        deltas = torch.cat(dense.deltas, dim=1).gather(1, sample.index[..., None].expand(-1, -1, 4))
        focal = (fields.focal_gamma, fields.focal_alpha) if fields.objectness_loss == "focal" else None
        return {
            "rpn_class": objectness_loss(logits, sample.positive, sample.valid, class_weight, focal=focal),
            "rpn_box": fields.rpn_lambda * box_loss(deltas, goal, sample.positive, box_weight, beta=fields.rpn_beta),
        }

    def _weights(
        self, sampled: Bool[Tensor, "n s"], inside: Bool[Tensor, "n a"], mean: Mean
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """What each image's sums are multiplied with: one over N_cls and one over N_reg, averaged over the images."""
        fields = self.fields
        images = len(sampled)
        all_sampled = one_over_sampled(sampled, mean)
        class_weight = box_weight = all_sampled
        if fields.rpn_class_normaliser != "sampled":
            class_weight = torch.full_like(all_sampled, 1 / (float(fields.rpn_class_normaliser) * images))
        if fields.rpn_box_normaliser == "locations":
            locations = inside.sum(dim=1) / self.anchors.per_position[0]
            box_weight = 1 / (locations * images)
        return class_weight, box_weight


def _best_of_levels(
    boxes: Float[Tensor, "ln t 4"],
    scores: Float[Tensor, "ln t"],
    anchors: Int[Tensor, "ln t"],
    kept: Kept,
    *,
    levels: int,
    keep: int,
) -> Proposals:
    """The best of what suppression left on all levels of each image, from rows in the order level, image."""

    def by_image(x: Tensor) -> Tensor:
        return x.unflatten(0, (levels, -1)).transpose(0, 1).flatten(1, 2)

    every_box, every_score, every_anchor = by_image(boxes), by_image(scores), by_image(anchors)
    level = torch.arange(levels, device=scores.device).repeat_interleave(kept.index.shape[1])
    place, valid = by_image(kept.index) + scores.shape[1] * level, by_image(kept.valid)
    ranked = every_score.gather(1, place).masked_fill(~valid, -torch.inf)
    best = ranked.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    place = place.gather(1, pad(best, (0, keep - best.shape[1])))
    return Proposals(
        every_box.gather(1, place[..., None].expand(-1, -1, 4)),
        every_score.gather(1, place),
        every_anchor.gather(1, place),
        torch.arange(keep, device=place.device) < valid.sum(dim=1, keepdim=True),
        kept.overflow.unflatten(0, (levels, -1)).any(dim=0),
    )


def _within(anchors: Float[Tensor, "a 4"], sizes: Int[Tensor, "n 2"]) -> Bool[Tensor, "n a"]:
    """Which anchors lie wholly on each image."""
    height, width = sizes[:, :1], sizes[:, 1:]
    x1, y1, x2, y2 = anchors.unbind(1)
    return (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
