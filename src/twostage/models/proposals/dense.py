"""A proposal network that knows classes: RetinaNet, the detector of one stage (Lin et al. 2017, "Focal Loss").

Where a region proposal network asks of every anchor whether it holds an object, this asks which; what it proposes are
detections already, and nothing is left for a second stage but to suppress their overlaps (`heads.suppress`). So one
stage and two are one composition, and differ in these two parts.

Letters: N images, A anchors of all levels, K classes, P proposals (padded), G ground-truth boxes (padded).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, smooth_l1_loss

from twostage.data.batch import Targets
from twostage.models.backbones.norm import ConvNorm, norm_layer
from twostage.models.fields import Fields
from twostage.models.losses import Losses, Mean, alone, binary_focal
from twostage.models.proposals.anchors import Anchors
from twostage.models.proposals.rpn import Dense, Proposals
from twostage.models.targets.matching import IGNORE, match
from twostage.models.targets.sampling import Sampler
from twostage.ops.boxes import clip, precise
from twostage.ops.deltas import decode, encode

PRIOR = 0.01  # of an object at the beginning: background, which is nearly everything, costs little from the first step


class DenseNetwork(nn.Module):
    """Two towers of convolutions slide over every level: one tells K logits of every anchor, the other its deltas.

    Towers begin by He et al. 2015 (the paper: a deviation of 0.01, with which a small net from random weights learns
    next to nothing), last layers and the prior as the paper's (section 4.1).

    The places among `Dense.logits`, and `Proposals.anchors`, count pairs: anchor times K plus class.
    """

    def __init__(self, fields: Fields, channels: int, strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.fields = fields
        self.num_classes = num_classes
        self.anchors = Anchors(fields, strides)
        each = self.anchors.per_position[0]
        # One layer serves all levels, whose statistics differ: a batch normalisation would mix them.
        norm = norm_layer("group", fields.norm_eps) if fields.dense_norm == "group" else None
        self.class_tower, self.box_tower = (
            nn.Sequential(
                *(
                    ConvNorm(nn.Conv2d(channels, channels, 3, padding=1), norm and norm(channels), "relu")
                    for _ in range(fields.dense_convs)
                )
            )
            for _ in range(2)
        )
        self.classes = nn.Conv2d(channels, each * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(channels, each * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for last in (self.classes, self.deltas):
            nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(
        self, maps: Sequence[Float[Tensor, "n c _ _"]], canvas: tuple[int, int], sizes: Int[Tensor, "n 2"]
    ) -> Dense:
        """Logits and deltas of every anchor."""
        logits, deltas = [], []
        for x in maps:
            logits.append(self.classes(self.class_tower(x)).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(self.box_tower(x)).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        return Dense(logits, deltas, *self.anchors(maps, canvas, sizes))

    def propose(self, dense: Dense, sizes: Int[Tensor, "n 2"]) -> Proposals:
        """The best pairs of every level, as boxes; in training none, for nothing learns from them."""
        fields, k = self.fields, self.num_classes
        top = 1 if self.training else fields.rpn_top_test
        scores, places, first = [], [], 0
        with torch.no_grad():
            for logit, inside in zip(dense.logits, dense.inside, strict=True):
                told = precise(logit).unflatten(1, (-1, k)).masked_fill(~inside[..., None], -torch.inf).flatten(1)
                best = pad(told, (0, top), value=-torch.inf).topk(top, dim=1)
                scores.append(best.values)
                places.append((best.indices + first).clamp(max=first + logit.shape[1] - 1))
                first += logit.shape[1]
            score, place = torch.cat(scores, dim=1).sort(dim=1, descending=True, stable=True)
            place = torch.cat(places, dim=1).gather(1, place)
            anchor = place // k
            boxes = decode(
                torch.cat(dense.deltas, dim=1).gather(1, anchor[..., None].expand(-1, -1, 4)),
                torch.cat(dense.anchors)[anchor],
                weights=fields.rpn_delta_weights,
                clamp=fields.delta_clamp,
                two_sided=fields.delta_clamp_two_sided,
            )
            valid = (score > -torch.inf) & (not self.training)
            overflow = torch.zeros(score.shape[0], dtype=torch.bool, device=score.device)
            return Proposals(clip(boxes, sizes), score, place, valid, overflow)

    def losses(
        self,
        dense: Dense,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: Mean = alone,
    ) -> Losses:
        """The focal loss of all pairs and the box loss of positives, over the number of positives (section 4.1).

        Nothing is sampled: that easy background counts little is what the loss is for. As in torchvision and detectron2
        an object that no anchor reaches keeps the best. The number is that of the whole batch (torchvision: of each
        image; detectron2: a moving mean).
        """
        fields, k = self.fields, self.num_classes
        anchors = torch.cat(dense.anchors)
        with torch.no_grad():
            matches = match(
                anchors,
                targets.boxes,
                targets.valid,
                positive=fields.rpn_positive_iou,
                negative=(0.0, fields.rpn_negative_iou),
                keep_best=True,
                usable=torch.cat(dense.inside, dim=1),
            )
            positive, truth = matches >= 0, matches.clamp(min=0)
            labels = targets.labels.gather(1, truth)
            goal = encode(
                targets.boxes.gather(1, truth[..., None].expand(-1, -1, 4)), anchors, weights=fields.rpn_delta_weights
            )
            one = torch.zeros(*labels.shape, k, device=labels.device)
            one.scatter_(2, labels[..., None], positive[..., None].float())
            weight = 1 / mean(positive.sum().float()).clamp(min=1)
        logits = torch.cat(dense.logits, dim=1).unflatten(1, (-1, k))
        each = binary_focal(logits, one, fields.focal_gamma, fields.focal_alpha).sum(dim=2)
        moves = torch.cat(dense.deltas, dim=1).float()
        distance = smooth_l1_loss(moves, goal, reduction="none", beta=fields.rpn_beta).sum(dim=2)
        return {
            "class": (each * (matches != IGNORE)).sum() * weight,
            "box": fields.rpn_lambda * distance.where(positive, 0.0).sum() * weight,
        }
