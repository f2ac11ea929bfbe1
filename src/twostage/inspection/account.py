"""The account of an image's objects: how far any box of each came, and why those that were missed were missed.

Every missed object has one cause, that of the furthest step that a box with an IoU of at least 0.5 with it reached;
boxes that were counted for other objects do not count for it. Letters: G objects, A anchors, P regions, C pairs of a
region and a class above the threshold.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.inspection.causes import Account, Step
from twostage.inspection.fates import Fate, PairFates, pair_fates
from twostage.inspection.trace import Trace
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.models.one_stage import OneStage, OneStageStages
from twostage.ops.boxes import clip, iou, precise

HIT = 0.5  # the IoU from which a box counts as one of an object
_BLOCK = 32  # objects at once: their overlaps with all anchors of a large image would take gigabytes


class Objects(NamedTuple):
    """The objects of an image, boxes as xyxy pixels of it. Those not `counted` (crowds, difficult ones) take
    detections, and are never missed."""

    boxes: Float[Tensor, "g 4"]
    labels: Int[Tensor, " g"]
    counted: Bool[Tensor, " g"]

    @classmethod
    def of(
        cls,
        boxes: Float[np.ndarray, "g 4"],
        labels: Int[np.ndarray, " g"],
        counted: Bool[np.ndarray, " g"] | None = None,
    ) -> "Objects":
        """Of arrays; all are counted by default."""
        counts = np.ones(len(labels), dtype=bool) if counted is None else counted
        there = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return cls(there, torch.as_tensor(labels, dtype=torch.int64), torch.as_tensor(counts, dtype=torch.bool))


class View:
    """The boxes of every step of one prediction under a post-processing, on the pixels of the image."""

    def __init__(self, trace: Trace, objects: Objects, config: PostprocessConfig) -> None:
        self.trace = trace
        self.objects = objects
        self.config = config
        self.pairs: PairFates = pair_fates(trace.above_threshold(config), config)
        self.pair_boxes = self._on_image(self.pairs.boxes)
        self.owner = owners(self.pair_boxes, self.pairs, objects)

    @property
    def one_stage(self) -> bool:
        """Whether regions are candidates of a single stage."""
        return isinstance(self.trace.stages, OneStageStages)

    @cached_property
    def anchors(self) -> Float[Tensor, "a 4"] | None:
        """All anchors before they are moved."""
        return self.trace.anchors_on_image()

    @cached_property
    def decoded(self) -> Float[Tensor, "a 4"] | None:
        """All anchors after they are moved."""
        if self.trace.anchors is not None:
            return self.trace.to_image(self.trace.anchors.boxes)
        stages = self.trace.stages
        if not isinstance(stages, OneStageStages):
            return None
        coder = cast(OneStage, self.trace.model).head.config.coder
        deltas = torch.cat(stages.anchors.deltas, dim=1)[0]
        return self._on_image(coder.decode(deltas, torch.cat(stages.anchors.anchors)))

    @cached_property
    def pair_logits(self) -> Float[Tensor, "a k"]:
        """Of a single stage: of each anchor and class; -inf of anchors on padding, which give no candidates."""
        predictions = self.trace.stages.anchors
        assert predictions is not None
        logits, inside = (torch.cat(part, dim=1)[0] for part in (predictions.logits, predictions.inside))
        return precise(logits).unflatten(0, (len(inside), -1)).masked_fill(~inside[:, None], -torch.inf)

    @cached_property
    def regions(self) -> Float[Tensor, "p 4"]:
        """The proposals, or the candidates of a single stage; those that are padding are empty."""
        proposals = self.trace.stages.proposals
        return self._on_image(proposals.boxes[0]).where(proposals.valid[0][:, None], 0.0)

    def refined(self, label: int) -> Float[Tensor, "p 4"]:
        """The regions moved by the deltas of a class; empty where a model that diverged gives no numbers."""
        if self.one_stage:
            return self.regions
        scored = self.trace.scored
        assert scored is not None
        each = torch.arange(scored.scores.shape[1])[None]
        boxes = scored.boxes(each, torch.full_like(each, label), self.trace.batch.sizes)[0]
        return self.trace.to_image(boxes).where(scored.regions.valid[0][:, None], 0.0).nan_to_num(0.0)

    def scores(self) -> Float[Tensor, "p k"]:
        """The final score of every region for every class, from 0 to 1; 0 where it is no number."""
        scored = self.trace.scored
        assert scored is not None
        scores = scored.scores[0].sigmoid() if scored.logits else scored.scores[0]
        return scores.nan_to_num(0.0)

    def _on_image(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        return self.trace.to_image(clip(boxes, self.trace.batch.sizes[0]) if self.one_stage else boxes)


def owners(boxes: Float[Tensor, "c 4"], pairs: PairFates, objects: Objects) -> Int[Tensor, " c"]:
    """The object that each detection is counted for at an IoU of 0.5, or -1, as COCO's evaluation matches them.

    Best scores first, each takes the free object of its class that it overlaps most, those not counted only where there
    is no other. Of other pairs -1.
    """
    owner = torch.full((len(boxes),), -1)
    kept = (pairs.fate == Fate.KEPT).nonzero()[:, 0]
    kept = kept[pairs.rank[kept].argsort()]
    overlaps = iou(boxes[kept], objects.boxes).double().numpy()
    labels, counted, free = objects.labels.numpy(), objects.counted.numpy(), np.ones(len(objects.labels), dtype=bool)
    for place, row, label in zip(kept.tolist(), overlaps, pairs.labels[kept].tolist(), strict=True):
        fits = (row >= HIT) & (labels == label)
        fits = fits & counted & free if (fits & counted & free).any() else fits & ~counted
        if fits.any():
            owner[place] = best = int(np.where(fits, row, -1.0).argmax())
            free[best] = False
    return owner


def reached(view: View) -> dict[Step, Bool[np.ndarray, " g"]]:
    """For every step which objects a box has an IoU of at least 0.5 with; from refined boxes on, one of its class."""
    objects, fates = view.objects, view.trace.anchors
    steps: dict[Step, Tensor] = {}
    if view.anchors is not None and view.decoded is not None:
        steps |= _hits(view.anchors, objects, {Step.ANCHOR: None})
        usable = torch.cat(view.trace.stages.anchors.inside, dim=1)[0]  # type: ignore[union-attr]
        which: dict[Step, Tensor | None] = {Step.DECODED: usable}
        if fates is not None:
            which |= {Step.RANKED: fates.fate >= Fate.SUPPRESSED, Step.DISTINCT_PROPOSAL: fates.fate >= Fate.CUT}
        steps |= _hits(view.decoded, objects, which)
    if view.one_stage:
        steps |= _hits(view.regions, objects, {Step.RANKED: None})
    else:
        steps |= _hits(view.regions, objects, {Step.REGION: None})
        refined = torch.zeros(len(objects.labels), dtype=torch.bool)
        for label in objects.labels.unique().tolist():
            own = objects.labels == label
            some = Objects(*(column[own] for column in objects))
            refined[own] = _hits(view.refined(label), some, {Step.REFINED: None})[Step.REFINED]
        steps[Step.REFINED] = refined
    fate = view.pairs.fate
    steps |= _hits(view.pair_boxes, objects, {Step.SCORED: None, Step.DISTINCT: fate >= Fate.CUT}, view.pairs.labels)
    found = torch.zeros(len(objects.labels), dtype=torch.bool)
    found[view.owner[view.owner >= 0]] = True
    steps[Step.FOUND] = found
    return {step: steps[step].numpy() for step in Step if step in steps}


def _hits(
    boxes: Float[Tensor, "n 4"],
    objects: Objects,
    which: Mapping[Step, Bool[Tensor, " n"] | None],
    labels: Int[Tensor, " n"] | None = None,
) -> dict[Step, Bool[Tensor, " g"]]:
    """Which objects some of the boxes hit, by the steps that take `which` of them; of the same class with `labels`."""
    found: dict[Step, list[Tensor]] = {step: [] for step in which}
    for start in range(0, max(1, len(objects.boxes)), _BLOCK):
        block = slice(start, start + _BLOCK)
        hits = iou(boxes, objects.boxes[block]) >= HIT
        if labels is not None:
            hits &= labels[:, None] == objects.labels[block]
        for step, some in which.items():
            found[step].append((hits if some is None else hits & some[:, None]).any(dim=0))
    return {step: torch.cat(parts) for step, parts in found.items()}


def best_anchor_iou(view: View) -> Float[np.ndarray, " g"]:
    """The largest IoU of each object with any anchor before it is moved; 0 without anchors."""
    if view.anchors is None:
        return np.zeros(len(view.objects.boxes), dtype=np.float32)
    blocks = view.objects.boxes.split(_BLOCK)
    return np.concatenate([np.zeros(0, np.float32), *(iou(view.anchors, some).amax(dim=0).numpy() for some in blocks)])


def account(trace: Trace, objects: Objects, config: PostprocessConfig) -> Account:
    """The account of the objects of an image under a post-processing, which may be stricter than the model's own."""
    from twostage.inspection.why import why

    view = View(trace, objects, config)
    steps, reach = reached(view), best_anchor_iou(view)
    missed = np.flatnonzero(objects.counted.numpy() & ~steps[Step.FOUND])
    return Account(steps, {int(g): why(view, int(g), float(reach[g])) for g in missed}, reach)
