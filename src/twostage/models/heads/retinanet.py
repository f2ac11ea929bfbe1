"""RetinaNet's head: class scores and box deltas of every anchor, in one stage (Lin et al. 2017, "Focal Loss").

Letters: N images, A anchors of all levels, K classes, C candidates (padded), G ground-truth boxes (padded).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from twostage.data.batch import Targets
from twostage.models.backbones.norm import Conv2d, NormConfig, conv_tower, init_convs, norm_layer
from twostage.models.component import Count, CountFromZero, IoULimit, NotNegative, Quad, Share, short
from twostage.models.heads.postprocess import (
    AboveThreshold,
    BatchDetections,
    PostprocessConfig,
    max_candidates,
    suppress,
)
from twostage.models.losses import Losses, ReduceMean, binary_focal, no_reduce
from twostage.models.proposals.anchors import AnchorConfig, Anchors
from twostage.models.proposals.rpn import AnchorPredictions, best_of_each_level
from twostage.models.targets.matching import IGNORE, match
from twostage.ops.best import best
from twostage.ops.boxes import clip, gather_boxes, precise
from twostage.ops.deltas import CLAMP, BoxCoder

PRIOR = 0.01  # probability of an object at initialisation, so that the many negatives cost little from the first step


@dataclass(frozen=True)
class RetinaNetConfig:
    """Its towers and its loss; the short names beginning with `rpn` are those of weights files written before."""

    convs: CountFromZero = short(4, "dense_convs")
    norm: Literal["none", "group"] = short("none", "dense_norm")
    norm_eps: NotNegative = short(1e-5, "norm_eps")
    delta_weights: Quad = short((1.0, 1.0, 1.0, 1.0), "rpn_delta_weights")
    delta_clamp: NotNegative = short(CLAMP, "delta_clamp")
    delta_clamp_two_sided: bool = short(False, "delta_clamp_two_sided")
    positive_iou: IoULimit = short(0.5, "rpn_positive_iou")
    negative_iou: IoULimit = short(0.4, "rpn_negative_iou")
    box_loss_weight: NotNegative = short(1.0, "rpn_lambda")
    beta: NotNegative = short(1 / 9, "rpn_beta")  # smooth L1 turns from quadratic to linear here
    focal_gamma: NotNegative = short(2.0, "focal_gamma")
    focal_alpha: Share = short(0.25, "focal_alpha")
    top: Count = short(1000, "rpn_top_test")  # candidates per level
    clip_before_nms: bool = True  # detectron2 suppresses boxes as they are predicted, and clips those it keeps

    @property
    def coder(self) -> BoxCoder:
        """From deltas to boxes and back."""
        return BoxCoder(self.delta_weights, self.delta_clamp, self.delta_clamp_two_sided)


class Candidates(NamedTuple):
    """The best pairs of an anchor and a class, best first; `scores` are logits, `anchors` indices of anchors."""

    boxes: Float[Tensor, "n c 4"]
    scores: Float[Tensor, "n c"]
    labels: Int[Tensor, "n c"]
    anchors: Int[Tensor, "n c"]
    valid: Bool[Tensor, "n c"]


class RetinaNetHead(nn.Module):
    """Two towers of convolutions slide over every level: one gives K logits for every anchor, the other its deltas.

    Towers are initialised as in He et al. 2015 (the paper: a deviation of 0.01, with which a small net from random
    weights hardly learns), last layers and the prior as in the paper (section 4.1). In `AnchorPredictions.logits`
    the K logits of an anchor stand together.
    """

    def __init__(
        self,
        config: RetinaNetConfig,
        anchors: AnchorConfig,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.anchors = Anchors(anchors, strides)
        each = self.anchors.per_position[0]
        # One layer serves all levels, whose statistics differ: a batch normalisation would mix them.
        norm = norm_layer(NormConfig("group", config.norm_eps)) if config.norm == "group" else None
        self.class_tower = conv_tower(channels, channels, config.convs, norm, bias=True)
        self.box_tower = conv_tower(channels, channels, config.convs, norm, bias=True)
        self.classes = Conv2d(channels, each * num_classes, 3, padding=1)
        self.deltas = Conv2d(channels, each * 4, 3, padding=1)
        init_convs(self)
        for last in (self.classes, self.deltas):
            nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(
        self, maps: Sequence[Float[Tensor, "n c _ _"]], canvas: tuple[int, int], sizes: Int[Tensor, "n 2"]
    ) -> AnchorPredictions:
        """Logits and deltas of every anchor."""
        logits, deltas = [], []
        for x in maps:
            logits.append(self.classes(self.class_tower(x)).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(self.box_tower(x)).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        return AnchorPredictions(logits, deltas, *self.anchors(maps, canvas, sizes))

    def select(self, predictions: AnchorPredictions, sizes: Int[Tensor, "n 2"]) -> Candidates:
        """The best `top` pairs of every level, as boxes."""
        k = self.num_classes
        pairs = (
            precise(logit).unflatten(1, (-1, k)).masked_fill(~inside[..., None], -torch.inf).flatten(1)
            for logit, inside in zip(predictions.logits, predictions.inside, strict=True)
        )
        scores, places = best_of_each_level(pairs, self.config.top)
        every = torch.cat(scores, dim=1)
        order, valid = best(every, every > -torch.inf, top=every.shape[1], fits=True)
        place = torch.cat(places, dim=1).gather(1, order)
        anchor = place // k
        deltas = gather_boxes(torch.cat(predictions.deltas, dim=1), anchor)
        boxes = self.config.coder.decode(deltas, torch.cat(predictions.anchors)[anchor])
        if self.config.clip_before_nms:
            boxes = clip(boxes, sizes)
        return Candidates(boxes, every.gather(1, order), place % k, anchor, valid)

    def postprocess(
        self, candidates: Candidates, sizes: Int[Tensor, "n 2"], config: PostprocessConfig
    ) -> BatchDetections:
        """Candidates above the threshold after NMS per class; the parent of a detection is its candidate."""
        found = suppress(self.above_threshold(candidates, config), config)
        return found._replace(boxes=clip(found.boxes, sizes))

    def above_threshold(self, candidates: Candidates, config: PostprocessConfig) -> AboveThreshold:
        """The best candidates above the threshold, which stand for regions."""
        score = candidates.scores.sigmoid()
        above = candidates.valid & (score > config.score_threshold)
        count = max_candidates(config, score.shape[1], score.device)
        place, valid = best(score, above, top=count, fits=count == score.shape[1])
        boxes, labels = gather_boxes(candidates.boxes, place), candidates.labels.gather(1, place)
        return AboveThreshold(boxes, score.gather(1, place), labels, place, valid, above.sum(dim=1) > count)

    def match(self, anchors: Float[Tensor, "a 4"], inside: Bool[Tensor, "n a"], targets: Targets) -> Int[Tensor, "n a"]:
        """The object that each anchor learns, or `NEGATIVE` or `IGNORE` of `targets.matching` (section 4)."""
        return match(
            anchors,
            targets.boxes,
            targets.valid,
            positive=self.config.positive_iou,
            negative=(0.0, self.config.negative_iou),
            keep_best=True,
            usable=inside,
        )

    def losses(self, predictions: AnchorPredictions, targets: Targets, mean: ReduceMean = no_reduce) -> Losses:
        """The focal loss of all pairs and the box loss of positives, over the number of positives (section 4.1).

        Nothing is sampled: the focal loss itself keeps easy negatives small. As in torchvision and detectron2 every
        object keeps its best anchor. The number is that of the whole batch (torchvision: of each image; detectron2: a
        moving mean).
        """
        config, k = self.config, self.num_classes
        anchors = torch.cat(predictions.anchors)
        with torch.no_grad():
            matches = self.match(anchors, torch.cat(predictions.inside, dim=1), targets)
            positive, truth = matches >= 0, matches.clamp(min=0)
            labels = targets.labels.gather(1, truth)
            goal = config.coder.encode(gather_boxes(targets.boxes, truth), anchors)
            one_hot = torch.zeros(*labels.shape, k, dtype=torch.float32, device=labels.device)
            one_hot.scatter_(2, labels[..., None], positive[..., None].float())
            # The mean over processes is below 1 where few of them have an object.
            count = mean(positive.sum().float())
            weight = 1 / count.where(count > 0, 1.0)
        logits = torch.cat(predictions.logits, dim=1).unflatten(1, (-1, k))
        focal = binary_focal(logits, one_hot, config.focal_gamma, config.focal_alpha).sum(dim=2)
        deltas = torch.cat(predictions.deltas, dim=1).float()
        distance = smooth_l1_loss(deltas, goal, reduction="none", beta=config.beta).sum(dim=2)
        return {
            "class": (focal * (matches != IGNORE)).sum() * weight,
            "box": config.box_loss_weight * distance.where(positive, 0.0).sum() * weight,
        }
