"""From class scores and deltas to the final boxes (Fast R-CNN, section 2.4, and common practice since).

Letters: N images, P proposals, K classes, D detections (padded).
"""

from collections.abc import Callable
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
    suppression of proposals or detections had not come to its end. `masks` are the probabilities that each cell of a
    grid over the box belongs to the object.
    """

    boxes: Float[Tensor, "n d 4"]
    scores: Float[Tensor, "n d"]
    labels: Int[Tensor, "n d"]
    proposals: Int[Tensor, "n d"]
    valid: Bool[Tensor, "n d"]
    overflow: Bool[Tensor, " n"]
    masks: Float[Tensor, "n d m m"] | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Found":
        """All tensors changed alike."""
        return Found(*(None if value is None else change(value) for value in self))  # type: ignore[arg-type]


def detect(
    logits: Float[Tensor, "n p k1"],
    deltas: Float[Tensor, "n p kd 4"],
    proposals: Proposals,
    sizes: Int[Tensor, "n 2"],
    fields: Fields,
) -> Found:
    """Every proposal gives a box for every class; those above the threshold compete within their class.

    1. Softmax, background dropped. 2. Threshold, the best `candidates`. 3. Decode, clip, minimum size. 4. NMS per
    class. 5. The best D.
    """
    scores = precise(logits).softmax(dim=2)[..., 1:]
    p, k = scores.shape[1:]
    above = (proposals.valid[..., None] & (scores > fields.score_threshold)).flatten(1)
    candidates = most_candidates(fields, p * _classes_above(fields.score_threshold, k), scores.device)
    entering = scores.flatten(1).masked_fill(~above, -torch.inf).sort(dim=1, descending=True, stable=True)
    score, place = entering.values[:, :candidates], entering.indices[:, :candidates]
    proposal, label = place // k, place % k
    own = proposal * deltas.shape[2] + label.clamp(max=deltas.shape[2] - 1)
    boxes = decode(
        deltas.flatten(1, 2).gather(1, own[..., None].expand(-1, -1, 4)),
        proposals.boxes.gather(1, proposal[..., None].expand(-1, -1, 4)),
        weights=fields.box_delta_weights,
        clamp=fields.delta_clamp,
        two_sided=fields.delta_clamp_two_sided,
    )
    overflow = proposals.overflow | (above.sum(dim=1) > candidates)
    return suppressed(clip(boxes, sizes), score, label, proposal, score > -torch.inf, overflow, fields)


def suppressed(
    boxes: Float[Tensor, "n c 4"],
    score: Float[Tensor, "n c"],
    label: Int[Tensor, "n c"],
    proposal: Int[Tensor, "n c"],
    competes: Bool[Tensor, "n c"],
    overflow: Bool[Tensor, " n"],
    fields: Fields,
) -> Found:
    """Of candidates, best first, those that overlap no better one of their class; `overflow` is what came before."""
    competes = competes & ((boxes[..., 2:] - boxes[..., :2]) >= fields.min_box_size).all(dim=2)
    groups = None if fields.nms_across_classes else label
    if fields.soft_nms == "off":
        index, kept, unsettled = nms(boxes, score, groups, competes, iou=fields.nms, top=fields.max_det)
        kept_scores, overflow = score.gather(1, index), overflow | unsettled
    else:
        index, kept_scores, kept = soft_nms(
            boxes,
            score,
            groups,
            competes,
            method=fields.soft_nms,
            iou=fields.nms,
            sigma=fields.soft_nms_sigma,
            min_score=fields.score_threshold,
            top=fields.max_det,
        )
    return Found(
        boxes=boxes.gather(1, index[..., None].expand(-1, -1, 4)),
        scores=kept_scores.where(kept, 0.0),
        labels=label.gather(1, index),
        proposals=proposal.gather(1, index),
        valid=kept,
        overflow=overflow,
    )


def most_candidates(fields: Fields, every: int, device: torch.device) -> int:
    """How many of an image's boxes enter the last NMS where the fields do not say: all, on a device `_ON_DEVICES`."""
    return fields.candidates or (every if device.type == "cpu" else min(every, _ON_DEVICES))


def _classes_above(threshold: float, classes: int) -> int:
    """How many classes of one proposal a softmax can put above the threshold: 19 above 0.05."""
    return classes if threshold * (classes + 1) < 1 else max(1, min(classes, ceil(1 / threshold) - 1))
