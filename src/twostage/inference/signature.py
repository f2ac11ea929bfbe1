"""The inputs and outputs of an exported file, and batches and detections as these.

Letters: n images on one canvas, h, w its height and width, d places for detections, m the side of a mask, p proposals.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twostage.data.batch import Batch, GivenProposals, Originals
from twostage.inference.graphs import AnyStages
from twostage.models.config import DetectorConfig, OneStageConfig, TwoStageConfig
from twostage.models.heads.box import BoxPredictions
from twostage.models.heads.postprocess import BatchDetections
from twostage.models.heads.retinanet import Candidates
from twostage.models.image import ImageConfig
from twostage.models.one_stage import OneStageStages
from twostage.models.proposals.rpn import AnchorPredictions, Proposals
from twostage.models.two_stage import Stages, as_proposals
from twostage.ops.boxes import gather_boxes

IMAGES = ("images", "sizes")
ORIGINALS = ("original_sizes", "factors", "extents")
PROPOSALS = ("proposals", "proposals_valid")
OUTPUTS = ("boxes", "scores", "labels", "count", "proposal_index", "overflow")


OF_ANCHORS = ("anchors", "anchor_logits", "anchor_deltas", "anchors_inside", "level_anchors")
OF_PROPOSALS = ("proposal_boxes", "proposal_scores", "proposal_anchors", "proposal_valid")
OF_REGIONS = ("region_boxes", "region_logits", "region_deltas")


class Signature(NamedTuple):
    """Names of inputs and outputs, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def signature_of(config: DetectorConfig, *, masks: bool, stages: bool = False) -> Signature:
    """What the graph of a configuration takes and gives, with `stages` also what the stages compute.

    images            [n, 3, h, w] float32   RGB from 0 to 1, each in the top left corner, padded with 0
    sizes             [n, 2] int64           height and width of each image
    original_sizes    [n, 2] int64           \\
    factors           [n, 2] float32          | those of `data.batch.Originals`, for models that compute with them
    extents           [n, 2] float32         /
    proposals         [n, p, 4] float32      for models without an RPN
    proposals_valid   [n, p] bool

    boxes             [n, d, 4] float32      on the pixels of `images`, best first
    scores, labels    [n, d] float32, int64
    count             [n] int64              of each image's detections; behind them everything is 0
    proposal_index    [n, d] int64           the proposal of each detection
    overflow          [n] bool               whether `candidates` were too few for an image
    masks             [n, d, m, m] float32   probabilities

    anchors           [a, 4] float32         of all levels; level_anchors [l] int64 has each level's number
    anchor_logits     [n, a] float32         objectness; of RetinaNet [n, a * k], the classes of an anchor together
    anchor_deltas     [n, a, 4] float32      anchors_inside [n, a] bool: which of them may propose
    proposal_boxes    [n, p, 4] float32      with proposal_scores, proposal_anchors and proposal_valid [n, p]; of
                                             RetinaNet its candidates, with proposal_labels, level after level
    region_boxes      [s, n, p, 4] float32   what each stage of a cascade, or the only one, reads and predicts, with
                                             region_logits [s, n, p, k + 1] and region_deltas [s, n, p, kd, 4]
    """
    inputs = IMAGES + (ORIGINALS if _needs_originals(config) else ()) + (PROPOSALS if _needs_proposals(config) else ())
    outputs = OUTPUTS + (("masks",) if masks else ())
    if not stages:
        return Signature(inputs, outputs)
    if isinstance(config, OneStageConfig):
        return Signature(inputs, (*outputs, *OF_ANCHORS, *OF_PROPOSALS, "proposal_labels"))
    of_anchors = () if _needs_proposals(config) else OF_ANCHORS
    return Signature(inputs, outputs + of_anchors + OF_PROPOSALS + OF_REGIONS)


def _needs_originals(config: DetectorConfig) -> bool:
    """Whether anything depends on the images before they were resized, besides their sizes afterwards."""
    image = config.image
    by_factor = isinstance(image, ImageConfig) and image.resize_by in ("caffe", "skimage")
    if by_factor or not isinstance(config, TwoStageConfig):
        return by_factor
    edges = config.box_head.edges != "half_open"
    return edges or (config.rpn is not None and config.rpn.min_size_of == "original")


def _needs_proposals(config: DetectorConfig) -> bool:
    return not isinstance(config, OneStageConfig) and getattr(config, "rpn", None) is None


def batch_of(given: Mapping[str, Tensor]) -> Batch:
    """The batch of a graph's inputs."""
    originals = Originals(*(given[name] for name in ORIGINALS)) if ORIGINALS[0] in given else None
    proposals = None
    if PROPOSALS[0] in given:
        boxes, valid = (given[name] for name in PROPOSALS)
        proposals = GivenProposals(boxes, torch.zeros_like(boxes[..., 0]), valid)
    return Batch(given["images"], given["sizes"], proposals, originals)


def inputs_of(batch: Batch, signature: Signature) -> dict[str, Tensor]:
    """A graph's inputs of a batch."""
    every: dict[str, Any] = {"images": batch.images, "sizes": batch.sizes}
    every |= zip(ORIGINALS, batch.before, strict=True)
    if batch.proposals is not None:
        every |= zip(PROPOSALS, (batch.proposals.boxes, batch.proposals.valid), strict=True)
    return {name: every[name] for name in signature.inputs}


def outputs_of(detections: BatchDetections) -> dict[str, Tensor]:
    """A graph's outputs of detections; those of padding are 0."""
    boxes, scores, labels, proposals, valid, overflow, masks = detections
    out = {
        "boxes": boxes.where(valid[..., None], 0.0),
        "scores": scores.where(valid, 0.0),
        "labels": labels.where(valid, 0),
        "count": valid.sum(dim=1),
        "proposal_index": proposals.where(valid, 0),
        "overflow": overflow,
    }
    return out if masks is None else {**out, "masks": masks}


def detections_of(out: Mapping[str, Tensor]) -> BatchDetections:
    """Detections of a graph's outputs."""
    valid = torch.arange(out["scores"].shape[1]) < out["count"][:, None]
    boxes, scores, labels, proposals = (out[name] for name in ("boxes", "scores", "labels", "proposal_index"))
    return BatchDetections(boxes, scores, labels, proposals, valid, out["overflow"], out.get("masks"))


def stage_outputs_of(stages: AnyStages) -> dict[str, Tensor]:
    """A graph's outputs of the stages before the detections."""
    out: dict[str, Tensor] = {}
    anchors, proposals = stages.anchors, stages.proposals
    if anchors is not None:
        counts = [torch.full((1,), level.shape[0], dtype=torch.int64) for level in anchors.anchors]
        columns = [torch.cat(anchors.anchors)]
        columns += [torch.cat(levels, dim=1) for levels in (anchors.logits, anchors.deltas, anchors.inside)]
        out |= zip(OF_ANCHORS, [*columns, torch.cat(counts)], strict=True)
    parts = (proposals.boxes, proposals.scores, proposals.anchors, proposals.valid)
    out |= zip(OF_PROPOSALS, parts, strict=True)
    if isinstance(proposals, Candidates):
        return {**out, "proposal_labels": proposals.labels}
    assert isinstance(stages, Stages)
    return out | dict(zip(OF_REGIONS, map(torch.stack, zip(*stages.predictions, strict=True)), strict=True))


def stages_of(out: Mapping[str, Tensor], batch: Batch) -> AnyStages:
    """The stages of a graph's outputs, without maps. `batch` has what the graph takes and does not give again."""
    anchors = None
    if OF_ANCHORS[0] in out:
        boxes, logits, deltas, inside, counts = (out[name] for name in OF_ANCHORS)
        each = counts.tolist()
        per_anchor = logits.shape[1] // max(1, sum(each))
        of_levels = [per_anchor * count for count in each]
        anchors = AnchorPredictions(
            list(logits.split(of_levels, dim=1)),
            list(deltas.split(each, dim=1)),
            list(boxes.split(each)),
            list(inside.split(each, dim=1)),
        )
    proposal_boxes, scores, index, valid = (out[name] for name in OF_PROPOSALS)
    if "proposal_labels" in out:
        assert anchors is not None
        candidates = Candidates(proposal_boxes, scores, out["proposal_labels"], index, valid)
        return OneStageStages((), anchors, *_best_first(candidates, detections_of(out)))
    predictions = tuple(BoxPredictions(*stage) for stage in zip(*(out[name] for name in OF_REGIONS), strict=True))
    proposals = Proposals(proposal_boxes, scores, index, valid, out["overflow"])
    if batch.proposals is not None:  # with their scores, which the graph does not take
        proposals = as_proposals(batch.proposals, batch.sizes)
    return Stages((), anchors, proposals._replace(originals=batch.originals), predictions, detections_of(out))


def _best_first(candidates: Candidates, detections: BatchDetections) -> tuple[Candidates, BatchDetections]:
    """Candidates in the order of their scores, and the detections with their places in it.

    Runtimes list them level by level (`ops.best`, `fits`).
    """
    scores = candidates.scores.where(candidates.valid, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    boxes, *columns = candidates
    ranked = Candidates(gather_boxes(boxes, order), *(column.gather(1, order) for column in columns))
    return ranked, detections._replace(proposals=order.argsort(dim=1).gather(1, detections.proposals))
