"""What the sampled regions should learn (Fast R-CNN, section 2.3; Faster R-CNN, section 3.2).

Letters: N images, P proposals, G ground-truth boxes, S sampled regions.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.data.batch import Targets
from twostage.models.targets.matching import IGNORE, match
from twostage.models.targets.sampling import Sampler
from twostage.ops.boxes import gather_boxes
from twostage.ops.deltas import BoxCoder


class RegionTargets(NamedTuple):
    """Sampled regions. `classes` counts background as 0; `truth` is the ground truth of a positive region, `index` its
    place among the proposals."""

    boxes: Float[Tensor, "n s 4"]
    classes: Int[Tensor, "n s"]
    deltas: Float[Tensor, "n s 4"]
    truth: Int[Tensor, "n s"]
    positive: Bool[Tensor, "n s"]
    valid: Bool[Tensor, "n s"]
    index: Int[Tensor, "n s"]  # type: ignore[assignment]  # hides tuple.index


def append_ground_truth(
    boxes: Float[Tensor, "n p 4"], valid: Bool[Tensor, "n p"], targets: Targets
) -> tuple[Float[Tensor, "n q 4"], Bool[Tensor, "n q"]]:
    """The proposals, then the ground truth: without it early training has hardly any positive regions."""
    return torch.cat([boxes, targets.boxes], dim=1), torch.cat([valid, targets.valid], dim=1)


def match_regions(
    boxes: Float[Tensor, "n p 4"],
    valid: Bool[Tensor, "n p"],
    targets: Targets,
    *,
    positive: float,
    negative: tuple[float, float],
) -> Int[Tensor, "n p"]:
    """The object that each region learns, or `NEGATIVE` or `IGNORE` of `matching`."""
    matches = match(boxes, targets.boxes, targets.valid, positive=positive, negative=negative, keep_best=False)
    return matches.where(valid, IGNORE)


@torch.no_grad()
def region_targets(
    boxes: Float[Tensor, "n p 4"],
    valid: Bool[Tensor, "n p"],
    targets: Targets,
    sampler: Sampler,
    *,
    positive: float,
    negative: tuple[float, float],
    coder: BoxCoder,
) -> RegionTargets:
    """Match regions with the ground truth (`matching.match`), and sample from them."""
    matches = match_regions(boxes, valid, targets, positive=positive, negative=negative)
    # The complement of the seed: anchors and regions are drawn independently.
    sample = sampler(matches, ~targets.seeds)
    truth = matches.gather(1, sample.index).clamp(min=0)
    regions = gather_boxes(boxes, sample.index)
    return RegionTargets(
        boxes=regions,
        classes=(targets.labels.gather(1, truth) + 1).where(sample.positive, 0),
        deltas=coder.encode(gather_boxes(targets.boxes, truth), regions),
        truth=truth,
        positive=sample.positive,
        valid=sample.valid,
        index=sample.index,
    )
