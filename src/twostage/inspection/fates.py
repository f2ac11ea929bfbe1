"""What became of every box that a prediction considered: kept, or dropped, at which step and for which other box.

The steps themselves are those of `models.proposals.rpn` and `models.heads.postprocess`, run again on what the forward
pass computed; here their results are only compared. Letters: A anchors of all levels, C pairs of a region and a class.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.data.batch import Originals
from twostage.models.heads.postprocess import AboveThreshold, PostprocessConfig, suppress
from twostage.models.proposals.rpn import RPN, AnchorPredictions, Proposals
from twostage.ops.boxes import iou, precise
from twostage.ops.nms import nms

_BLOCK = 2048  # boxes at once: overlaps of all with all that are left would take gigabytes at low thresholds


class Fate(IntEnum):
    """The step that dropped a box, in the order of the steps; `KEPT` at the end."""

    OUTSIDE = 0  # an anchor on padding, which may not propose
    LOW = 1  # not among the best of its level, or a score below the threshold
    SMALL = 2  # a side below the minimum, or below the RPN's own threshold
    SUPPRESSED = 3  # overlaps a better box
    CUT = 4  # suppression left it, but there were enough better ones
    KEPT = 5


class AnchorFates(NamedTuple):
    """Of every anchor; boxes are moved by their deltas and clipped to the image."""

    boxes: Float[Tensor, "a 4"]
    scores: Float[Tensor, " a"]  # logits of objectness
    level: Int[Tensor, " a"]
    rank: Int[Tensor, " a"]  # within the level, from 0; those outside come last
    fate: Int[Tensor, " a"]
    by: Int[Tensor, " a"]  # the anchor whose box suppressed it, or -1
    proposal: Int[Tensor, " a"]  # its place among the proposals, or -1


class PairFates(NamedTuple):
    """Of every pair of a region and a class above the threshold, best first."""

    boxes: Float[Tensor, "c 4"]
    scores: Float[Tensor, " c"]
    labels: Int[Tensor, " c"]
    regions: Int[Tensor, " c"]
    fate: Int[Tensor, " c"]
    by: Int[Tensor, " c"]  # the pair whose box suppressed it, or -1
    rank: Int[Tensor, " c"]  # among those that suppression left, by falling score, or -1; of those kept the detection


def anchor_fates(
    rpn: RPN,
    predictions: AnchorPredictions,
    proposals: Proposals,
    sizes: Int[Tensor, "1 2"],
    originals: Originals | None,
) -> AnchorFates:
    """What became of each anchor of one image; all on the CPU. `proposals` are those that the forward pass made."""
    top = rpn.config.top_test
    counts = [len(level) for level in predictions.anchors]
    logits, inside = (torch.cat(part, dim=1)[0] for part in (predictions.logits, predictions.inside))
    anchors, deltas = torch.cat(predictions.anchors), torch.cat(predictions.deltas, dim=1)[0]
    boxes = rpn.config.coder.decode_inside(deltas[None], anchors[None], rpn.limits(sizes))[0]
    level = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    ranked = rpn.ranked(predictions, sizes, originals, top)
    fate = torch.where(inside, Fate.LOW, Fate.OUTSIDE)
    by = torch.full_like(fate, -1)
    survivors = nms(ranked.boxes, ranked.scores, None, ranked.valid, iou=rpn.config.nms, top=top)
    for row in range(len(counts)):
        here = ranked.scores[row] > -torch.inf
        places, valid = ranked.anchors[row], ranked.valid[row]
        fate[places[here & ~valid]] = Fate.SMALL
        left = survivors.index[row][survivors.valid[row]]
        better = suppressors(ranked.boxes[row], left, None, rpn.config.nms)
        dropped = valid.clone()
        dropped[left] = False
        fate[places[dropped]] = Fate.SUPPRESSED
        by[places[dropped]] = places[better[dropped]]
        fate[places[left]] = Fate.CUT
    proposal = torch.full_like(fate, -1)
    kept = proposals.anchors[0][proposals.valid[0]]
    fate[kept], proposal[kept] = Fate.KEPT, torch.arange(len(kept))
    return AnchorFates(boxes, logits, level, _ranks(logits, inside, counts), fate, by, proposal)


def pair_fates(above: AboveThreshold, config: PostprocessConfig) -> PairFates:
    """What became of each pair of one image; all on the CPU."""
    count = max(1, int(above.valid.sum()))  # suppression needs one place, which may be padding
    boxes, scores, labels, regions = (part[0, :count] for part in above[:4])
    if not count:
        return PairFates(boxes, scores, labels, regions, *(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    every = AboveThreshold(
        boxes[None], scores[None], labels[None], torch.arange(count)[None], above.valid[:, :count], above.overflow
    )
    fate = torch.full((count,), int(Fate.SMALL))
    large = ((boxes[:, 2:] - boxes[:, :2]) >= config.min_box_size).all(dim=1)
    unlimited = suppress(every, replace(config, max_det=max(1, count)))
    left = unlimited.proposals[0][unlimited.valid[0]]
    groups = None if config.nms_across_classes else labels
    threshold = config.nms if config.soft_nms != "gaussian" else 0.0
    better = suppressors(boxes, left, groups, threshold)
    fate[large] = Fate.SUPPRESSED
    fate[left] = Fate.CUT
    fate[left[: config.max_det]] = Fate.KEPT
    by = better.where(fate == Fate.SUPPRESSED, -1)
    rank = torch.full_like(fate, -1)
    rank[left] = torch.arange(len(left))
    every_pair = PairFates(boxes, scores, labels, regions, fate, by, rank)
    return PairFates(*(column[above.valid[0, :count]] for column in every_pair))


def decayed_scores(pairs: PairFates, config: PostprocessConfig) -> Float[Tensor, " c"]:
    """The score that soft-NMS leaves of each pair; without it 0 of those that are suppressed."""
    count = len(pairs.fate)
    one = torch.zeros(1, dtype=torch.bool)
    every = AboveThreshold(
        *(pairs.boxes[None], pairs.scores[None], pairs.labels[None]),
        torch.arange(count)[None],
        ~one.expand(1, count),
        one,
    )
    kept = suppress(every, replace(config, max_det=max(1, count), soft_nms_min_score=0.0))
    scores = torch.zeros(count)
    scores[kept.proposals[0][kept.valid[0]]] = kept.scores[0][kept.valid[0]]
    return scores


def suppressors(
    boxes: Float[Tensor, "m 4"], left: Int[Tensor, " s"], groups: Int[Tensor, " m"] | None, threshold: float
) -> Int[Tensor, " m"]:
    """For each box the first of those that suppression left, in their order, that overlaps it by more than `threshold`.

    Where rounding leaves none above it, the one that overlaps it most. Of those left, themselves; -1 if none is left.
    """
    if not len(left):
        return torch.full((len(boxes),), -1)
    first = []
    for some in torch.arange(len(boxes)).split(_BLOCK):
        overlaps = iou(precise(boxes[some]), precise(boxes[left]))
        if groups is not None:
            overlaps = overlaps.masked_fill(groups[some, None] != groups[left][None], -1.0)
        above = overlaps > threshold
        first.append(torch.where(above.any(dim=1), above.to(torch.int8).argmax(dim=1), overlaps.argmax(dim=1)))
    better = left[torch.cat(first)]
    better[left] = left
    return better


def _ranks(logits: Float[Tensor, " a"], inside: Bool[Tensor, " a"], counts: Sequence[int]) -> Int[Tensor, " a"]:
    ranks = []
    for level in precise(logits).masked_fill(~inside, -torch.inf).split(list(counts)):
        order = level.argsort(descending=True, stable=True)
        ranks.append(torch.empty_like(order).scatter_(0, order, torch.arange(len(level))))
    return torch.cat(ranks)
