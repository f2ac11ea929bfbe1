"""What each anchor and each region would learn from the objects of an image, and which of them are sampled.

By the model's own matching and sampling (Faster R-CNN, section 3.1.2; Fast R-CNN, section 2.3). Letters: A anchors, P
proposals, G objects.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.data.batch import Targets
from twostage.inference.graphs import AnyStages
from twostage.models.build import Model
from twostage.models.targets.matching import IGNORE
from twostage.models.targets.regions import append_ground_truth, match_regions
from twostage.models.two_stage import Stages, TwoStage
from twostage.ops.boxes import iou


class Learned(NamedTuple):
    """Of each box: the object that it learns, or `NEGATIVE` or `IGNORE` (`models.targets.matching`), its largest IoU
    with any object, and whether it is in the sample."""

    matches: Int[Tensor, " b"]
    overlap: Float[Tensor, " b"]
    sampled: Bool[Tensor, " b"]


class Learning(NamedTuple):
    """Of anchors, None without an RPN, and of the regions of the first stage, None of one stage or of R-CNN.

    Behind the proposals stand the objects themselves, where they join them in training.
    """

    anchors: Learned | None
    regions: Learned | None


@torch.no_grad()
def learning(model: Model, stages: AnyStages, sizes: Int[Tensor, "1 2"], targets: Targets) -> Learning:
    """What anchors and regions of one image would learn, sampled with the targets' seed; all on the CPU."""
    anchors = None
    if stages.anchors is not None:
        every, inside = torch.cat(stages.anchors.anchors), torch.cat(stages.anchors.inside, dim=1)
        if isinstance(model, TwoStage):
            assert model.rpn is not None
            matches = model.rpn.match(every, inside, sizes, targets)
            sample = model.rpn.sampler(matches, targets.seeds)
            anchors = _learned(matches, every, targets, sample.index[0][sample.valid[0]])
        else:  # nothing is sampled: the focal loss sums over all but those ignored
            matches = model.head.match(every, inside, targets)
            anchors = _learned(matches, every, targets, (matches[0] != IGNORE).nonzero()[:, 0])
    if not isinstance(stages, Stages) or not isinstance(model, TwoStage) or not model.head.box_heads:
        return Learning(anchors, None)
    head, (boxes, _, _, valid, *_) = model.head.box_heads[0], stages.proposals
    if head.config.append_ground_truth:
        boxes, valid = append_ground_truth(boxes, valid, targets)
    rule = {"positive": head.stage.positive_iou, "negative": head.stage.background_iou}
    matches = match_regions(boxes, valid, targets, **rule)  # type: ignore[arg-type]
    goal = head.sample(boxes, valid, targets, None)
    return Learning(anchors, _learned(matches, boxes[0], targets, goal.index[0][goal.valid[0]]))


def _learned(
    matches: Int[Tensor, "1 b"], boxes: Float[Tensor, "b 4"], targets: Targets, sampled: Int[Tensor, " s"]
) -> Learned:
    truth = targets.boxes[0][targets.valid[0]]
    overlap = iou(boxes, truth).amax(dim=1) if len(truth) else boxes.new_zeros(len(boxes))
    drawn = torch.zeros(len(boxes), dtype=torch.bool)
    drawn[sampled] = True
    return Learned(matches[0], overlap, drawn)
