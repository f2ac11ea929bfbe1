"""What the page has of regions: proposals, what every stage made of them, their classes, and pairs with a class.

Letters: P proposals, K classes, C pairs of a region and a class, T classes that are shown of each region.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.inspection.page.columns import column, shares
from twostage.inspection.page.grids import Shapes, grid_data, pooling_of
from twostage.inspection.trace import Trace
from twostage.models.config import TwoStageConfig
from twostage.models.heads.postprocess import AboveThreshold, PostprocessConfig, Scored
from twostage.models.one_stage import OneStageStages
from twostage.models.two_stage import Stages, TwoStage

Json = dict[str, Any]

FLOOR = 0.01
"""The score down to which pairs are on the page, unless there are too many."""
_ALL_CLASSES, _BEST = 20, 8
_PAIRS, _OWN_PAIRS = 20_000, 50_000  # at most; more only above the model's own threshold
_MASKS = 300


def regions_data(trace: Trace, shapes: Shapes) -> Json:
    """{"boxes", "scores", "anchors": of proposals, or of a single stage's candidates, "labels": of candidates only,
    "refined": boxes after each stage, "grids": where each stage reads, "classes": see `_classes`, "learned"}"""
    stages = trace.stages
    proposals = stages.proposals
    valid = proposals.valid[0]
    common = {
        "boxes": column(proposals.boxes[0][valid], "f4"),
        "scores": column(proposals.scores[0][valid], "f4"),
        "anchors": column(proposals.anchors[0][valid], "i4"),
    }
    if isinstance(stages, OneStageStages):
        labels = stages.proposals.labels[0][valid]
        return {**common, "labels": column(labels, "i2"), "refined": [], "grids": [], "classes": _of_anchors(trace)}
    scored = trace.scored
    assert scored is not None
    poolings = pooling_of(cast(TwoStage, trace.model).head)
    grids = [
        grid_data(pooling, stage.boxes[0][valid], shapes, trace.batch.canvas)
        for pooling, stage in zip(poolings, stages.predictions, strict=True)
    ]
    return {
        **common,
        "refined": [column(boxes[valid], "f4") for boxes in _refined(trace, stages, scored)],
        "grids": grids,
        "classes": _classes(trace, scored, valid),
        "learned": _learned(trace, valid),
    }


def _refined(trace: Trace, stages: Stages, scored: Scored) -> list[Float[Tensor, "p 4"]]:
    """The boxes after each stage; those of the last for each region's best class."""
    each = torch.arange(scored.scores.shape[1])[None]
    last = scored.boxes(each, scored.scores.argmax(dim=2), trace.batch.sizes)
    return [*(stage.boxes[0] for stage in stages.predictions[1:]), last[0]]


def _classes(trace: Trace, scored: Scored, valid: Tensor) -> Json:
    """{"shown": T, "labels", "scores": the T best classes of each region, "background": where there is such a score}"""
    scores = scored.scores[0][valid]
    if scored.logits:
        scores = scores.sigmoid()
    softmax = isinstance(trace.config, TwoStageConfig)
    return _best(scores) | {"background": shares(1 - scores.sum(dim=1)) if softmax else None}


def _of_anchors(trace: Trace) -> Json:
    """The same of a single stage's candidates, by the anchor of each."""
    assert isinstance(trace.stages, OneStageStages)
    proposals = trace.stages.proposals
    logits = torch.cat(trace.stages.anchors.logits, dim=1)[0].unflatten(0, (-1, len(trace.names))).float()
    return _best(logits[proposals.anchors[0][proposals.valid[0]]].sigmoid()) | {"background": None}


def _best(scores: Float[Tensor, "p k"]) -> Json:
    shown = scores.shape[1] if scores.shape[1] <= _ALL_CLASSES else _BEST
    best = scores.topk(shown, dim=1)
    return {"shown": shown, "labels": column(best.indices, "i2"), "scores": shares(best.values)}


def _learned(trace: Trace, valid: Tensor) -> Json | None:
    """What the first stage would learn from each region: {"matches", "overlap", "sampled"}."""
    if trace.targets is None or trace.learning.regions is None:
        return None
    # Behind the proposals stand the objects, where they join them in training.
    matches, overlap, sampled = (part[: len(valid)][valid] for part in trace.learning.regions)
    return {"matches": column(matches, "i2"), "overlap": shares(overlap), "sampled": column(sampled, "u1")}


def pairs_data(trace: Trace, config: PostprocessConfig) -> Json:
    """The pairs of a region and a class down to a low score, best first, with exact boxes and scores.

    {"floor": the lowest threshold at which none is missing, "logits": whether scores are logits, "boxes", "scores",
    "labels", "regions"}
    """
    own = min(config.score_threshold, trace.config.postprocess.score_threshold)
    floor = min(own, FLOOR)
    # The scale of scores differs with and without soft-NMS: the threshold alone is lowered.
    above = trace.above_threshold(replace(config, score_threshold=floor, candidates=None))
    logits = trace.scored is not None and trace.scored.logits and config.soft_nms == "off"
    scores = above.scores[0][above.valid[0]]
    probability = scores.sigmoid() if logits else scores
    count = max(min(len(scores), _PAIRS), min(int((probability > own).sum()), _OWN_PAIRS))
    if count < len(scores):
        floor = float(probability[count])
    columns = _first(above, count)
    return {"floor": floor, "logits": logits, **columns}


def _first(above: AboveThreshold, count: int) -> Json:
    boxes, scores, labels, regions = (part[0, :count] for part in above[:4])
    return {
        "boxes": column(boxes, "f4"),
        "scores": column(scores, "f4"),
        "labels": column(labels, "i2"),
        "regions": column(regions, "i4"),
    }


def masks_data(trace: Trace) -> Json | None:
    """The masks of the detections that were predicted, as bytes on small grids, with the pair each belongs to."""
    detections = trace.stages.detections
    mask = trace.config.mask if isinstance(trace.config, TwoStageConfig) else None
    if detections.masks is None or mask is None:
        return None
    valid = detections.valid[0]
    columns = (detections.masks, detections.labels, detections.proposals)
    masks, labels, regions = (part[0][valid][:_MASKS] for part in columns)
    return {
        "side": masks.shape[-1],
        "threshold": mask.threshold,
        "labels": column(labels, "i2"),
        "regions": column(regions, "i4"),
        "cells": column((masks.float() * 255).round(), "u1"),
    }
