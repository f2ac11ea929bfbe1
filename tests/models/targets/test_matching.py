import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from twostage.models.targets import matching
from twostage.models.targets.matching import BLOCK, IGNORE, NEGATIVE, match


def random_boxes(count: int, seed: int, *, whole: bool = False, side: float = 100.0) -> Tensor:
    """Boxes on a small canvas; at whole pixels IoUs tie often."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * side
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=g) * side / 2], dim=1)
    return boxes.round() if whole else boxes


def torchvision_match(boxes: Tensor, truth: Tensor, positive: float, negative: float, keep_best: bool) -> Tensor:
    """torchvision's labels: -1 below, -2 between, as ours."""
    assert (Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS) == (NEGATIVE, IGNORE)
    return Matcher(positive, negative, allow_low_quality_matches=keep_best)(box_iou(truth, boxes))


def one_image(boxes: Tensor, truth: Tensor, **settings) -> Tensor:
    valid = torch.ones(1, len(truth), dtype=torch.bool)
    return match(boxes, truth[None], valid, **settings)[0]


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["anywhere", "whole pixels, many ties"])
@pytest.mark.parametrize("count", [1, 3, BLOCK, BLOCK + 1, 110])
def test_equal_to_torchvision(count: int, whole: bool, keep_best: bool) -> None:
    boxes, truth = random_boxes(500, 1, whole=whole), random_boxes(count, 2, whole=whole)
    expected = torchvision_match(boxes, truth, 0.7, 0.3, keep_best)
    settings = {"positive": 0.7, "negative": (0.0, 0.3), "keep_best": keep_best}
    assert torch.equal(one_image(boxes, truth, **settings), expected)
    assert len(expected.unique()) > 1


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40), whole=st.booleans(), keep_best=st.booleans())
def test_equal_to_torchvision_at_region_thresholds(seed: int, count: int, whole: bool, keep_best: bool) -> None:
    boxes, truth = random_boxes(60, seed, whole=whole), random_boxes(count, seed + 1, whole=whole)
    overlapping = box_iou(truth, boxes).amax(dim=1) > 0
    truth = truth[overlapping]  # torchvision makes every box positive for a ground truth that none overlaps
    if len(truth):
        expected = torchvision_match(boxes, truth, 0.5, 0.5, keep_best)
        settings = {"positive": 0.5, "negative": (0.0, 0.5), "keep_best": keep_best}
        assert torch.equal(one_image(boxes, truth, **settings), expected)


def test_detectron2s_literal_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_matcher.py`: matches [1, 1, 2, 0], labels [-1, 1, 0, 1] (ignored, object, background, object)."""
    iou = torch.tensor([[[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]]])
    monkeypatch.setattr(matching, "box_iou", lambda truth, boxes: iou.clone())
    matches = one_image(torch.zeros(4, 4), torch.zeros(3, 4), positive=0.7, negative=(0.0, 0.3), keep_best=True)
    assert matches.tolist() == [IGNORE, 1, NEGATIVE, 0]


def test_mmdetections_literal_case() -> None:
    """`test_max_iou_assigner.py`: [1, 0, 2, 0] with 0 for background; ground truth 2 has its best box at IoU 0.16."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [5, 5, 15, 15], [32, 32, 38, 42]])
    truth = torch.tensor([[0.0, 0, 10, 9], [0, 10, 10, 19]])
    matches = one_image(boxes, truth, positive=0.5, negative=(0.0, 0.5), keep_best=True)
    assert (matches + 1).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("keep_best", [False, True])
def test_an_image_without_ground_truth_has_only_negatives(keep_best: bool) -> None:
    """Whether there are no rows at all or only padding."""
    boxes = random_boxes(20, 3)
    settings = {"positive": 0.7, "negative": (0.0, 0.3), "keep_best": keep_best}
    assert one_image(boxes, torch.zeros(0, 4), **settings).eq(NEGATIVE).all()
    padding = match(boxes, random_boxes(5, 4)[None], torch.zeros(1, 5, dtype=torch.bool), **settings)
    assert padding.eq(NEGATIVE).all()


def test_without_background_overlap_at_zero_boxes_far_from_any_object_are_ignored() -> None:
    """Fast R-CNN takes its background from [0.1, 0.5)."""
    truth = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 2], [0, 0, 10, 1]])
    matches = one_image(boxes, truth, positive=0.5, negative=(0.1, 0.5), keep_best=False)
    assert matches.tolist() == [0, IGNORE, NEGATIVE, NEGATIVE]


def test_thresholds_include_their_lower_end() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 2.5]])  # IoU 0.5 and 0.25, exact in float32
    matches = one_image(boxes, truth, positive=0.5, negative=(0.0, 0.25), keep_best=False)
    assert matches.tolist() == [0, IGNORE]


def test_every_ground_truth_keeps_its_best_boxes_ties_included() -> None:
    truth = torch.tensor([[10.0, 10, 14, 14]])
    boxes = torch.tensor([[0.0, 0, 12, 12], [12, 12, 24, 24], [12, 0, 24, 12], [30, 30, 40, 40]])
    matches = one_image(boxes, truth, positive=0.7, negative=(0.0, 0.3), keep_best=True)
    assert matches.tolist() == [0, 0, 0, NEGATIVE]


def test_a_ground_truth_that_no_box_overlaps_takes_none() -> None:
    """torchvision would make every box positive here."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20]])
    matches = one_image(boxes, torch.tensor([[50.0, 50, 60, 60]]), positive=0.7, negative=(0.0, 0.3), keep_best=True)
    assert matches.eq(NEGATIVE).all()


def test_ties_between_ground_truths_of_different_blocks_go_to_the_first() -> None:
    truth = random_boxes(1, 5).repeat(3 * BLOCK, 1)
    matches = one_image(truth[:1], truth, positive=0.7, negative=(0.0, 0.3), keep_best=True)
    assert matches.tolist() == [0]


def test_each_image_of_a_batch_as_if_alone() -> None:
    """Boxes common to all images (anchors), or each image's own (proposals)."""
    counts = (0, 3, 40)
    truth = torch.zeros(3, 40, 4)
    valid = torch.zeros(3, 40, dtype=torch.bool)
    for i, count in enumerate(counts):
        truth[i, :count], valid[i, :count] = random_boxes(count, i), True
    own = torch.stack([random_boxes(50, 10 + i) for i in range(3)])
    settings = {"positive": 0.5, "negative": (0.0, 0.5), "keep_best": True}
    together, shared = match(own, truth, valid, **settings), match(own[0], truth, valid, **settings)
    for i, count in enumerate(counts):
        assert torch.equal(together[i], one_image(own[i], truth[i, :count], **settings))
        assert torch.equal(shared[i], one_image(own[0], truth[i, :count], **settings))


def test_what_stands_in_padding_does_not_matter() -> None:
    boxes, truth = random_boxes(30, 1), random_boxes(6, 2)[None]
    valid = torch.tensor([[True, True, False, True, False, False]])
    settings = {"positive": 0.5, "negative": (0.0, 0.3), "keep_best": True}
    other = torch.where(valid[..., None], truth, boxes[0])  # the very boxes to match
    assert torch.equal(match(boxes, truth, valid, **settings), match(boxes, other, valid, **settings))


def test_boxes_that_are_not_usable_are_not_the_best_of_a_ground_truth() -> None:
    """py-faster-rcnn drops the anchors across the border before it takes each ground truth's best."""
    boxes, truth = random_boxes(200, 1), random_boxes(20, 2)
    usable = torch.rand(200, generator=torch.Generator().manual_seed(3)) < 0.5
    settings = {"positive": 0.9, "negative": (0.0, 0.3), "keep_best": True}
    matches = one_image(boxes, truth, usable=usable[None], **settings)
    assert torch.equal(matches[usable], one_image(boxes[usable], truth, **settings))
    assert (matches[~usable] == IGNORE).all()
