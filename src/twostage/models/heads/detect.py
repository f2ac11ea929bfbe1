"""From class scores and deltas to the final boxes (Fast R-CNN, section 2.4, and common practice since).

Letters: N images, P proposals, K classes, D detections (padded).
"""

from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.models.fields import Fields
from twostage.models.proposals.rpn import Proposals
from twostage.ops.boxes import clip, precise
from twostage.ops.deltas import decode
from twostage.ops.nms import nms
from twostage.ops.soft_nms import soft_nms

_ON_DEVICES = 4096  # boxes that enter the last NMS where it measures all of them against each other


class Found(NamedTuple):
    """Detections on the pixels of the batch, best first. `labels` are 0..K-1; `proposals` is each one's parent.

    `overflow` is True where the result may be wrong: more boxes passed the threshold than `candidates` allows, or a
    suppression of proposals or detections had not come to its end.
    """

    boxes: Float[Tensor, "n d 4"]
    scores: Float[Tensor, "n d"]
    labels: Int[Tensor, "n d"]
    proposals: Int[Tensor, "n d"]
    valid: Bool[Tensor, "n d"]
    overflow: Bool[Tensor, " n"]


def detect(
    logits: Float[Tensor, "n p k1"],
    deltas: Float[Tensor, "n p kd 4"],
    proposals: Proposals,
    sizes: Int[Tensor, "n 2"],
    fields: Fields,
) -> Found:
    """Every proposal gives a box for every class; those above the threshold compete within their class.

    1. Softmax, background dropped. 2. Decode, clip. 3. Threshold, minimum size. 4. NMS per class. 5. The best D.
    """
    scores = precise(logits).softmax(dim=2)[..., 1:]
    n, p, k = scores.shape
    boxes = decode(
        deltas,
        proposals.boxes[:, :, None],
        weights=fields.box_delta_weights,
        clamp=fields.delta_clamp,
        two_sided=fields.delta_clamp_two_sided,
    )
    boxes = clip(boxes.flatten(1, 2), sizes).unflatten(1, (p, -1)).expand(n, p, k, 4)
    large = ((boxes[..., 2:] - boxes[..., :2]) >= fields.min_box_size).all(dim=3)
    valid = proposals.valid[..., None] & (scores > fields.score_threshold) & large
    label = torch.arange(k, device=scores.device).expand(n, p, k).flatten(1)
    flat_boxes, flat_scores = boxes.flatten(1, 2), scores.flatten(1)
    groups = None if fields.nms_across_classes else label
    candidates = fields.candidates or _all_above(fields.score_threshold, p, k, scores.device)
    competes = valid.flatten(1)
    if fields.soft_nms == "off":
        index, kept, overflow = nms(
            flat_boxes, flat_scores, groups, competes, iou=fields.nms, top=fields.max_det, candidates=candidates
        )
        kept_scores = flat_scores.gather(1, index)
    else:
        # Soft-NMS measures all that enter against every box it takes: only those above the threshold may.
        entering = _best(flat_scores, competes, candidates)
        place, kept_scores, kept = soft_nms(
            flat_boxes.gather(1, entering[..., None].expand(-1, -1, 4)),
            flat_scores.gather(1, entering),
            None if groups is None else groups.gather(1, entering),
            competes.gather(1, entering),
            method=fields.soft_nms,
            iou=fields.nms,
            sigma=fields.soft_nms_sigma,
            min_score=fields.score_threshold,
            top=fields.max_det,
        )
        index = entering.gather(1, place)
        overflow = competes.sum(dim=1) > candidates
    return Found(
        boxes=flat_boxes.gather(1, index[..., None].expand(-1, -1, 4)),
        scores=kept_scores.where(kept, 0.0),
        labels=label.gather(1, index),
        proposals=index // k,
        valid=kept,
        overflow=overflow | proposals.overflow,
    )


def _best(scores: Float[Tensor, "n m"], valid: Bool[Tensor, "n m"], count: int) -> Int[Tensor, "n c"]:
    """The places of the `count` best valid scores, or of all; of equal ones the first come first."""
    order = scores.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    return order[:, :count]


def _all_above(threshold: float, proposals: int, classes: int, device: torch.device) -> int:
    """How many boxes of an image can pass the threshold; away from the CPU at most `_ON_DEVICES`, and more are told."""
    every = proposals * _classes_above(threshold, classes)
    return every if device.type == "cpu" else min(every, _ON_DEVICES)


def _classes_above(threshold: float, classes: int) -> int:
    """How many classes of one proposal a softmax can put above the threshold: 19 above 0.05."""
    return classes if threshold <= 0 else max(1, min(classes, ceil(1 / threshold) - 1))
