"""From class scores and deltas to the final boxes (Fast R-CNN, section 2.4, and common practice since).

Letters: N images, P proposals, K classes, D detections (padded).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.models.component import Count, NotNegative, Positive, Share, short
from twostage.models.proposals.rpn import Proposals
from twostage.ops.best import best
from twostage.ops.boxes import gather_boxes, precise
from twostage.ops.deltas import BoxCoder, with_pixel
from twostage.ops.nms import nms
from twostage.ops.soft_nms import soft_nms

_ON_DEVICES = 4096  # boxes that enter the last NMS where it computes the IoU of every pair


@dataclass(frozen=True)
class PostprocessConfig:
    """From class scores to detections: threshold, NMS per class, the best of each image."""

    score_threshold: Share = short(0.05, "score_threshold")
    nms: Share = short(0.5, "nms")
    nms_across_classes: bool = short(False, "nms_across_classes")
    soft_nms: Literal["off", "linear", "gaussian"] = short("off", "soft_nms")
    soft_nms_sigma: Positive = short(0.5, "soft_nms_sigma")
    # The score below which soft-NMS drops a box that it has weakened; None: `score_threshold`.
    soft_nms_min_score: Share | None = short(None, "soft_nms_min_score")
    max_det: Count = short(100, "max_det")
    min_box_size: NotNegative = short(1e-2, "min_box_size")
    # Boxes per image that enter NMS; None: all, on a GPU the best 4096.
    candidates: Count | None = short(None, "candidates")


class BatchDetections(NamedTuple):
    """Detections on the pixels of the batch, best first. `labels` are 0..K-1; `proposals` is each one's parent.

    `overflow` is True where the result may be wrong: more boxes passed the threshold than `candidates` allows, or a
    suppression of proposals or detections had not converged. `masks` are the probabilities that each cell of a grid
    over the box belongs to the object.
    """

    boxes: Float[Tensor, "n d 4"]
    scores: Float[Tensor, "n d"]
    labels: Int[Tensor, "n d"]
    proposals: Int[Tensor, "n d"]
    valid: Bool[Tensor, "n d"]
    overflow: Bool[Tensor, " n"]
    masks: Float[Tensor, "n d m m"] | None = None

    @classmethod
    def concatenate(cls, parts: "Sequence[BatchDetections]") -> "BatchDetections":
        """Those of several batches, one after the other."""
        columns = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
        return cls(*columns)  # type: ignore[arg-type]

    def each(self, change: Callable[[Tensor], Tensor]) -> "BatchDetections":
        """The same function applied to every tensor."""
        return BatchDetections(*(None if value is None else change(value) for value in self))  # type: ignore[arg-type]


class Scored(NamedTuple):
    """What the last selection chooses from: a score of any scale for every region and class, above `floor`, and the
    boxes that deltas make of the regions. At most `per_region` scores of a region are above the floor. Of `logits` the
    detections' scores are the sigmoid: it is 1 for large ones, which compete as they are."""

    scores: Float[Tensor, "n p k"]
    deltas: Float[Tensor, "n p kd 4"]
    regions: Proposals
    coder: BoxCoder
    floor: float
    per_region: int
    logits: bool = False

    def boxes(
        self, region: Int[Tensor, "n c"], label: Int[Tensor, "n c"], sizes: Int[Tensor, "n 2"]
    ) -> Float[Tensor, "n c 4"]:
        """The boxes of pairs of a region and a class."""
        every, regions = self.deltas, self.regions
        own = region * every.shape[2] + label.clamp(max=every.shape[2] - 1)
        deltas = gather_boxes(every.flatten(1, 2), own)
        return decode_on_originals(self.coder, deltas, gather_boxes(regions.boxes, region), sizes, regions)


class AboveThreshold(NamedTuple):
    """Pairs of a region and a class with a score above the threshold, best first."""

    boxes: Float[Tensor, "n c 4"]
    scores: Float[Tensor, "n c"]
    labels: Int[Tensor, "n c"]
    regions: Int[Tensor, "n c"]
    valid: Bool[Tensor, "n c"]
    overflow: Bool[Tensor, " n"]  # of the steps before, or of this one, where there were more than `candidates`


def probabilities(
    logits: Float[Tensor, "n p k1"],
    deltas: Float[Tensor, "n p kd 4"],
    regions: Proposals,
    coder: BoxCoder,
    config: PostprocessConfig,
) -> Scored:
    """Softmax, background dropped."""
    scores, floor = precise(logits).softmax(dim=2)[..., 1:], config.score_threshold
    return Scored(scores, deltas, regions, coder, floor, _classes_above(floor, scores.shape[2]))


def best_boxes(scored: Scored, sizes: Int[Tensor, "n 2"], config: PostprocessConfig) -> BatchDetections:
    """Every region gives a box for every class; those above the threshold compete within their class.

    1. Threshold, the best `candidates`. 2. Decode, clip, minimum size. 3. NMS per class. 4. The best D.
    """
    found = suppress(above_threshold(scored, sizes, config), config)
    return found._replace(scores=found.scores.sigmoid().where(found.valid, 0.0)) if scored.logits else found


def above_threshold(scored: Scored, sizes: Int[Tensor, "n 2"], config: PostprocessConfig) -> AboveThreshold:
    """The best `candidates` above the threshold, with their boxes."""
    scores, regions = scored.scores, scored.regions
    p, k = scores.shape[1:]
    above = (regions.valid[..., None] & (scores > scored.floor)).flatten(1)
    most = max_candidates(config, p * scored.per_region, scores.device)
    every = scores.flatten(1)
    place, valid = best(every, above, top=most, fits=config.candidates is None and scores.device.type == "cpu")
    region, label = place // k, place % k
    overflow = regions.overflow | (above.sum(dim=1) > most)
    return AboveThreshold(scored.boxes(region, label, sizes), every.gather(1, place), label, region, valid, overflow)


def decode_on_originals(
    coder: BoxCoder,
    deltas: Float[Tensor, "n c 4"],
    boxes: Float[Tensor, "n c 4"],
    sizes: Int[Tensor, "n 2"],
    proposals: Proposals,
) -> Float[Tensor, "n c 4"]:
    """The boxes inside each image before it was resized, on the pixels of the batch.

    Where the last pixel belongs to a box, it is here one of that image (py-faster-rcnn: lib/fast_rcnn/test.py,
    `im_detect`; Detectron: core/test.py, `im_detect_bbox`).
    """
    if proposals.originals is None:
        return coder.decode_inside(deltas, boxes, sizes)
    _, factors, extents = proposals.originals
    if coder.edges == "half_open":
        return coder.decode_inside(deltas, boxes, extents)
    pixel = (1 / factors.to(boxes.dtype)).flip(1)[:, None]
    return coder.decode_inside(deltas, with_pixel(boxes, pixel - 1), extents, pixel)


def suppress(candidates: AboveThreshold, config: PostprocessConfig) -> BatchDetections:
    """NMS per class of candidates that are large enough, and the best D of what it leaves."""
    boxes, score, label, proposal, valid, overflow = candidates
    competes = valid & ((boxes[..., 2:] - boxes[..., :2]) >= config.min_box_size).all(dim=2)
    groups = None if config.nms_across_classes else label
    if config.soft_nms == "off":
        index, kept, unsettled = nms(boxes, score, groups, competes, iou=config.nms, top=config.max_det)
        kept_scores, overflow = score.gather(1, index), overflow | unsettled
    else:
        index, kept_scores, kept = soft_nms(
            boxes,
            score,
            groups,
            competes,
            method=config.soft_nms,
            iou=config.nms,
            sigma=config.soft_nms_sigma,
            min_score=config.score_threshold if config.soft_nms_min_score is None else config.soft_nms_min_score,
            top=config.max_det,
        )
    return BatchDetections(
        boxes=gather_boxes(boxes, index),
        scores=kept_scores.where(kept, 0.0),
        labels=label.gather(1, index),
        proposals=proposal.gather(1, index),
        valid=kept,
        overflow=overflow,
    )


def max_candidates(config: PostprocessConfig, every: int, device: torch.device) -> int:
    """How many boxes per image enter the last NMS; by default all on a CPU, `_ON_DEVICES` on other devices."""
    return config.candidates or (every if device.type == "cpu" else min(every, _ON_DEVICES))


def _classes_above(threshold: float, classes: int) -> int:
    """How many classes of one proposal a softmax can put above the threshold: 19 above 0.05."""
    return classes if threshold * (classes + 1) < 1 else max(1, min(classes, ceil(1 / threshold) - 1))
