"""What the sampled regions should learn (Fast R-CNN, section 2.3; Faster R-CNN, section 3.2).

Letters: N images, P proposals, G ground-truth boxes, S sampled regions.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.data.batch import Targets
from twostage.models.fields import Fields
from twostage.models.targets.matching import IGNORE, match
from twostage.models.targets.sampling import Sampler
from twostage.ops.deltas import encode


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


def joined(
    boxes: Float[Tensor, "n p 4"], valid: Bool[Tensor, "n p"], targets: Targets, fields: Fields
) -> tuple[Float[Tensor, "n q 4"], Bool[Tensor, "n q"]]:
    """Proposals and behind them, where `region_truth` says so, the ground truth itself.

    Without it early training would have hardly any positive region.
    """
    if not fields.region_truth:
        return boxes, valid
    return torch.cat([boxes, targets.boxes], dim=1), torch.cat([valid, targets.valid], dim=1)


@torch.no_grad()
def region_targets(
    boxes: Float[Tensor, "n p 4"], valid: Bool[Tensor, "n p"], targets: Targets, sampler: Sampler, fields: Fields
) -> RegionTargets:
    """Match regions with the ground truth, and sample from them."""
    matches = match(
        boxes,
        targets.boxes,
        targets.valid,
        positive=fields.region_positive_iou,
        negative=fields.region_background_iou,
        keep_best=False,
    ).where(valid, IGNORE)
    # Other bits than the anchors' draw from the same seed.
    sample = sampler(matches, ~targets.seeds)
    truth = matches.gather(1, sample.index).clamp(min=0)
    goal = targets.boxes.gather(1, truth[..., None].expand(-1, -1, 4))
    regions = boxes.gather(1, sample.index[..., None].expand(-1, -1, 4))
    return RegionTargets(
        boxes=regions,
        classes=(targets.labels.gather(1, truth) + 1).where(sample.positive, 0),
        deltas=encode(goal, regions, weights=fields.box_delta_weights),
        truth=truth,
        positive=sample.positive,
        valid=sample.valid,
        index=sample.index,
    )
