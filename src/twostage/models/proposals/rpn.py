"""The region proposal network (Faster R-CNN, section 3).

1. Slide a 3 x 3 convolution over each map; at every position score k anchors and predict 4 deltas for each.
2. Training: label the anchors, sample some, learn objectness and deltas.
3. Keep the best-scored anchors of each level, move them by their deltas, clip them to the image.
4. Drop boxes below a minimum size, suppress overlaps within each level, keep the best of all levels.

Letters: N images, A anchors of all levels, S sampled anchors, P proposals (padded), G ground-truth boxes (padded).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from twostage.data.batch import Originals, Targets
from twostage.models.backbones.norm import Conv2d, conv_norm, is_hooked, window_of
from twostage.models.component import Count, IoULimit, NotNegative, Positive, Quad, Share, short
from twostage.models.fused import side_by_side
from twostage.models.losses import ReduceMean, box_loss, no_reduce, objectness_loss, one_over_sampled
from twostage.models.proposals.anchors import AnchorConfig, Anchors
from twostage.models.proposals.sources import ProposalConfig
from twostage.models.targets.matching import match
from twostage.models.targets.sampling import RandomSampler, Sampler
from twostage.ops.best import best
from twostage.ops.boxes import gather_boxes, precise
from twostage.ops.conv_at import conv_at
from twostage.ops.deltas import CLAMP, BoxCoder, Edges
from twostage.ops.nms import Kept, nms
from twostage.ops.plain import Window

_FEW = 4  # times fewer anchors than positions are sampled, where they are computed by themselves


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first; `anchors` is the index of the anchor each came from.

    `overflow` marks images whose suppression may not have converged (see `ops.nms.Kept`), `originals` are the images
    before they were resized.
    """

    boxes: Float[Tensor, "n p 4"]
    scores: Float[Tensor, "n p"]
    anchors: Int[Tensor, "n p"]
    valid: Bool[Tensor, "n p"]
    overflow: Bool[Tensor, " n"]
    originals: Originals | None = None

    def to(self, device: torch.device | str) -> "Proposals":
        """The same on another device."""
        there = [None if value is None else value.to(device) for value in self]
        return Proposals(*there)  # type: ignore[arg-type]


class AnchorPredictions(NamedTuple):
    """What is predicted for every anchor, level by level in the anchors' order.

    With `maps` logits and deltas have no gradient: the loss predicts its sampled anchors anew from these.
    """

    logits: list[Float[Tensor, "n _"]]
    deltas: list[Float[Tensor, "n _ 4"]]
    anchors: list[Float[Tensor, "_ 4"]]
    inside: list[Bool[Tensor, "n _"]]
    maps: Sequence[Float[Tensor, "n c _ _"]] = ()

    def to(self, device: torch.device | str) -> "AnchorPredictions":
        """The same on another device."""
        return AnchorPredictions(*([level.to(device) for level in part] for part in self))


class Ranked(NamedTuple):
    """The best anchors of each level of each image, best first, as rows in the order level, image: each is suppressed
    alone."""

    boxes: Float[Tensor, "ln t 4"]
    scores: Float[Tensor, "ln t"]
    anchors: Int[Tensor, "ln t"]
    valid: Bool[Tensor, "ln t"]


@dataclass(frozen=True)
class RPNConfig:
    """The region proposal network (Faster R-CNN, section 3)."""

    channels: Count | None = None  # None: as many as the map has
    convs: Count = 1
    objectness: Literal["sigmoid", "softmax"] = "sigmoid"
    delta_weights: Quad = (1.0, 1.0, 1.0, 1.0)
    delta_clamp: NotNegative = short(CLAMP, "delta_clamp")
    delta_clamp_two_sided: bool = short(False, "delta_clamp_two_sided")
    edges: Edges = short("half_open", "edges")
    positive_iou: IoULimit = 0.7
    negative_iou: IoULimit = 0.3
    cross_boundary: bool = True  # False: anchors that cross the image's border are left out of training
    batch: Count = 256
    positive_fraction: Share = 0.5
    class_normaliser: Positive | Literal["sampled"] = "sampled"  # N_cls: a number per image, or all sampled anchors
    box_normaliser: Literal["sampled", "locations"] = "sampled"  # N_reg: sampled anchors, or positions of the maps
    loss_weight: NotNegative = short(1.0, "rpn_lambda")  # lambda: of the box loss
    beta: NotNegative = 1 / 9  # smooth L1 turns from quadratic to linear here
    loss: Literal["cross_entropy", "focal"] = short("cross_entropy", "objectness_loss")
    focal_gamma: NotNegative = short(2.0, "focal_gamma")  # Lin et al. 2017
    focal_alpha: Share = short(0.25, "focal_alpha")
    top_train: Count = 2000  # per level, before NMS
    top_test: Count = 1000
    nms: Share = 0.7
    min_size: NotNegative = 1e-3
    min_size_of: Literal["resized", "original"] = "resized"  # the image whose pixels it counts
    min_size_first: bool = False  # whether smaller boxes are dropped before the best are taken
    score_threshold: Share = 0.0  # probability of being an object
    # Proposals and anchors reach to the next multiple of so many pixels after the image (Detectron: 32).
    clip_multiple: Count = short(1, "rpn_clip_multiple")
    # The regions' loss also moves the proposals' corners (section 3.2, "non-approximate joint training").
    proposal_gradient: bool = short(False, "proposal_gradient")

    @property
    def coder(self) -> BoxCoder:
        """From deltas to boxes and back."""
        return BoxCoder(self.delta_weights, self.delta_clamp, self.delta_clamp_two_sided, self.edges)


class RPN(nn.Module):
    """Proposal source of Faster R-CNN; the same head slides over every level."""

    def __init__(
        self, config: RPNConfig, anchors: AnchorConfig, proposals: ProposalConfig, channels: int, strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.config = config
        self.proposals = proposals
        self.anchors = Anchors(anchors, strides)
        each = self.anchors.per_position[0]
        width = config.channels or channels
        inputs = [channels] + [width] * (config.convs - 1)
        self.convs = nn.ModuleList(Conv2d(c, width, 3, padding=1) for c in inputs)
        self.objectness = nn.Conv2d(width, each * (2 if config.objectness == "softmax" else 1), 1)
        self.deltas = nn.Conv2d(width, each * 4, 1)
        self.sampler: Sampler = RandomSampler(config.batch, config.positive_fraction)
        for layer in [*self.convs, self.objectness, self.deltas]:
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, maps: Sequence[Float[Tensor, "n c _ _"]], canvas: tuple[int, int], sizes: Int[Tensor, "n 2"]
    ) -> AnchorPredictions:
        """Objectness and deltas of every anchor."""
        logits, deltas = [], []
        for x in maps:
            for conv in self.convs:
                x = conv_norm(x, conv, activation="relu")
            both = side_by_side(x, self.objectness, self.deltas)
            scores, moves = (x.permute(0, 2, 3, 1) for x in both)
            logits.append(self._logits(scores).flatten(1))
            deltas.append(moves.flatten(1, 3).unflatten(1, (-1, 4)))
        return AnchorPredictions(logits, deltas, *self.anchors(maps, canvas, self.limits(sizes)))

    def predict(
        self, maps: Sequence[Float[Tensor, "n c _ _"]], canvas: tuple[int, int], sizes: Int[Tensor, "n 2"]
    ) -> AnchorPredictions:
        """`forward` as a model calls it: in training without a gradient, where the loss reads few positions."""
        if not (self.training and torch.is_grad_enabled() and self.samples_few(maps)):
            return self(maps, canvas, sizes)
        with torch.no_grad():
            predictions: AnchorPredictions = self(maps, canvas, sizes)
        # Autocast keeps its copies of weights, and those made here have no gradient (pytorch issue 112583).
        torch.clear_autocast_cache()
        return predictions._replace(maps=maps)

    def _logits(self, scores: Float[Tensor, "*s _"]) -> Float[Tensor, "*s _"]:
        """Of the anchors of a position, from the objectness layer's channels."""
        if self.config.objectness == "sigmoid":
            return scores
        # Softmax over (background, object) is the sigmoid of their difference.
        background, foreground = scores.unflatten(-1, (-1, 2)).unbind(-1)
        return foreground - background

    def samples_few(self, maps: Sequence[Float[Tensor, "n c _ _"]]) -> bool:
        """Whether the loss reads so few positions that these alone should be computed with their gradients.

        The gradient of a convolution costs twice as much as the convolution. Not with `proposal_gradient`, which needs
        every proposal's, nor with more than one convolution, whose windows overlap, nor where hooks look at the layers.
        """
        config, (conv, *others) = self.config, self.convs
        positions = sum(x.shape[2] * x.shape[3] for x in maps)
        return (
            _FEW * config.batch <= positions
            and not config.proposal_gradient
            and not others
            and isinstance(conv, nn.Conv2d)
            and conv.weight.shape[2:] == (3, 3)
            and window_of(conv) == Window(padding=(1, 1))
            and not any(is_hooked(module) for module in (self, conv, self.objectness, self.deltas))
        )

    def predict_at(
        self, maps: Sequence[Float[Tensor, "n c _ _"]], index: Int[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s 4"]]:
        """Logits and deltas of some anchors of each image, as `forward` has them, from their windows of the maps."""
        conv = cast(Conv2d, self.convs[0])
        each = self.anchors.per_position[0]
        x = conv_at(maps, index // each, conv.weight, conv.bias).relu()
        scores, moves = (linear(x, layer.weight.flatten(1), layer.bias) for layer in (self.objectness, self.deltas))
        own = (index % each)[..., None]
        moves = moves.unflatten(-1, (each, 4)).gather(2, own[..., None].expand(-1, -1, -1, 4))
        return self._logits(scores).gather(2, own)[..., 0], moves[:, :, 0]

    def propose(
        self,
        predictions: AnchorPredictions,
        sizes: Int[Tensor, "n 2"],
        originals: Originals | None = None,
        *,
        top: int | None = None,
        keep: int | None = None,
    ) -> Proposals:
        """The best boxes of each image: of every level `top` before NMS, `keep` of all levels after it.

        By default as many as the configuration has for the module's mode. No gradient passes through them unless
        `proposal_gradient` is set.
        """
        config, proposals = self.config, self.proposals
        top = top or (config.top_train if self.training else config.top_test)
        keep = keep or (proposals.keep_train if self.training else proposals.keep_test)
        with torch.set_grad_enabled(torch.is_grad_enabled() and config.proposal_gradient):
            return self._propose(predictions, sizes, originals, top, keep)

    def _propose(
        self,
        predictions: AnchorPredictions,
        sizes: Int[Tensor, "n 2"],
        originals: Originals | None,
        top: int,
        keep: int,
    ) -> Proposals:
        ranked = self.ranked(predictions, sizes, originals, top)
        kept = nms(ranked.boxes, ranked.scores, None, ranked.valid, iou=self.config.nms, top=min(keep, top))
        proposals = _best_of_levels(ranked, kept, levels=len(predictions.logits), keep=keep)
        return proposals._replace(originals=originals)

    def ranked(
        self, predictions: AnchorPredictions, sizes: Int[Tensor, "n 2"], originals: Originals | None, top: int
    ) -> Ranked:
        """The best `top` anchors of every level, moved by their deltas; `valid` are those large and good enough."""
        config = self.config
        levels = len(predictions.logits)
        sizes = self.limits(sizes)
        usable = predictions.inside
        if config.min_size_first:
            usable = [
                inside & self._are_large(config.coder.decode_inside(delta, anchor.expand_as(delta), sizes), originals)
                for inside, delta, anchor in zip(usable, predictions.deltas, predictions.anchors, strict=True)
            ]
        each = zip(predictions.logits, usable, strict=True)
        every = (precise(logit).masked_fill(~inside, -torch.inf) for logit, inside in each)
        scores, places = best_of_each_level(every, top)
        score, place = torch.cat(scores), torch.cat(places)
        of_image = place.unflatten(0, (levels, -1)).transpose(0, 1).flatten(1)
        delta = gather_boxes(torch.cat(predictions.deltas, dim=1), of_image)
        delta = delta.unflatten(1, (levels, top)).transpose(0, 1).flatten(0, 1)
        box = config.coder.decode_inside(delta, torch.cat(predictions.anchors)[place], sizes.repeat(levels, 1))
        valid = self._are_large(box, originals, levels) & (score > -torch.inf)
        valid &= score.sigmoid() >= config.score_threshold
        return Ranked(box, score, place, valid)

    def limits(self, sizes: Int[Tensor, "n 2"]) -> Int[Tensor, "n 2"]:
        """How far proposals and anchors of each image reach."""
        multiple = self.config.clip_multiple
        return sizes if multiple == 1 else -(-sizes // multiple) * multiple

    def _are_large(
        self, boxes: Float[Tensor, "ln p 4"], originals: Originals | None, levels: int = 1
    ) -> Bool[Tensor, "ln p"]:
        """Which boxes of so many levels of every image have no side below the least."""
        config = self.config
        sides = boxes[..., 2:] - boxes[..., :2]
        if config.min_size_of == "resized" or originals is None:
            return (sides >= config.min_size).all(dim=-1)
        least = (config.min_size / originals.factors).flip(1)[:, None]
        return (sides >= least.repeat(levels, 1, 1)).all(dim=-1)

    def losses(
        self,
        predictions: AnchorPredictions,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: ReduceMean = no_reduce,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses of objectness and boxes over the sampled anchors (section 3.1.2, equation 1)."""
        config = self.config
        anchors = torch.cat(predictions.anchors)
        with torch.no_grad():
            inside = torch.cat(predictions.inside, dim=1)
            matches = self.match(anchors, inside, sizes, targets)
            sample = (sampler or self.sampler)(matches, targets.seeds)
            truth = matches.gather(1, sample.index).clamp(min=0)
            goal = config.coder.encode(gather_boxes(targets.boxes, truth), anchors[sample.index])
            class_weight, box_weight = self._weights(sample.valid, inside, mean)
        if predictions.maps:
            logits, deltas = self.predict_at(predictions.maps, sample.index)
        else:
            logits = torch.cat(predictions.logits, dim=1).gather(1, sample.index)
            deltas = gather_boxes(torch.cat(predictions.deltas, dim=1), sample.index)
        focal = (config.focal_gamma, config.focal_alpha) if config.loss == "focal" else None
        return {
            "rpn_class": objectness_loss(logits, sample.positive, sample.valid, class_weight, focal=focal),
            "rpn_box": config.loss_weight * box_loss(deltas, goal, sample.positive, box_weight, beta=config.beta),
        }

    def match(
        self, anchors: Float[Tensor, "a 4"], inside: Bool[Tensor, "n a"], sizes: Int[Tensor, "n 2"], targets: Targets
    ) -> Int[Tensor, "n a"]:
        """The object that each anchor learns, or `NEGATIVE` or `IGNORE` of `targets.matching` (section 3.1.2)."""
        config = self.config
        return match(
            anchors,
            targets.boxes,
            targets.valid,
            positive=config.positive_iou,
            negative=(0.0, config.negative_iou),
            keep_best=True,
            usable=inside if config.cross_boundary else inside & _within(anchors, sizes),
        )

    def _weights(
        self, sampled: Bool[Tensor, "n s"], inside: Bool[Tensor, "n a"], mean: ReduceMean
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """What each image's sums are multiplied with: one over N_cls and one over N_reg, averaged over the images."""
        config = self.config
        images = len(sampled)
        all_sampled = one_over_sampled(sampled, mean)
        class_weight = box_weight = all_sampled
        if config.class_normaliser != "sampled":
            class_weight = torch.full_like(all_sampled, 1 / (float(config.class_normaliser) * images))
        if config.box_normaliser == "locations":
            locations = inside.sum(dim=1) / self.anchors.per_position[0]
            box_weight = 1 / (locations * images)
        return class_weight, box_weight


def best_of_each_level(
    scores: Iterable[Float[Tensor, "n _"]], top: int
) -> tuple[list[Float[Tensor, "n {top}"]], list[Int[Tensor, "n {top}"]]]:
    """The `top` scores of every level, best first, and their places in the row of all levels."""
    best, places, first = [], [], 0
    for score in scores:
        # A level may have fewer than `top`: padding keeps the shape independent of the map's size.
        level = pad(score, (0, top), value=-torch.inf).topk(top, dim=1)
        best.append(level.values)
        places.append((level.indices + first).clamp(max=first + score.shape[1] - 1))
        first += score.shape[1]
    return best, places


def _best_of_levels(ranked: Ranked, kept: Kept, *, levels: int, keep: int) -> Proposals:
    """The best of what suppression left on all levels of each image."""

    def by_image(x: Tensor) -> Tensor:
        return x.unflatten(0, (levels, -1)).transpose(0, 1).flatten(1, 2)

    every_box, every_score, every_anchor = by_image(ranked.boxes), by_image(ranked.scores), by_image(ranked.anchors)
    level = torch.arange(levels, device=every_box.device).repeat_interleave(kept.index.shape[1])
    place, valid = by_image(kept.index) + ranked.scores.shape[1] * level, by_image(kept.valid)
    chosen = best(every_score.gather(1, place), valid, top=keep)
    place = place.gather(1, chosen.index)
    return Proposals(
        gather_boxes(every_box, place),
        every_score.gather(1, place),
        every_anchor.gather(1, place),
        chosen.valid,
        kept.overflow.unflatten(0, (levels, -1)).any(dim=0),
    )


def _within(anchors: Float[Tensor, "a 4"], sizes: Int[Tensor, "n 2"]) -> Bool[Tensor, "n a"]:
    """Which anchors lie wholly on each image."""
    height, width = sizes[:, :1], sizes[:, 1:]
    x1, y1, x2, y2 = anchors.unbind(1)
    return (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
