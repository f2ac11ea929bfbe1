import math

import pytest
import torch
from torch import Tensor

from twostage.ops.accelerator.soft_nms import soft_nms as on_accelerators
from twostage.ops.boxes import iou as pairwise_iou
from twostage.ops.nms import nms
from twostage.ops.soft_nms import soft_nms


def example(n: int = 2, m: int = 60, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, m, 2, generator=g) * 60
    boxes = torch.cat([corners, corners + 10 + 30 * torch.rand(n, m, 2, generator=g)], dim=-1)
    return (
        boxes,
        torch.rand(n, m, generator=g),
        torch.randint(3, (n, m), generator=g),
        torch.rand(n, m, generator=g) > 0.2,
    )


def by_the_paper(boxes, scores, groups, valid, method, iou, sigma, min_score) -> tuple[list[int], list[float]]:
    """Figure 2 of the paper, one box after the other in plain Python."""
    overlap = pairwise_iou(boxes, boxes).tolist()
    waiting = {i: float(scores[i]) for i in range(len(scores)) if valid[i]}
    index, final = [], []
    while waiting:
        best = max(waiting, key=lambda i: (waiting[i], -i))
        index.append(best)
        final.append(waiting.pop(best))
        for i in waiting:
            if groups is None or groups[i] == groups[best]:
                o = overlap[best][i]
                waiting[i] *= math.exp(-o * o / sigma) if method == "gaussian" else (1 - o if o > iou else 1.0)
    keep = [k for k, score in enumerate(final) if score >= min_score]
    return [index[k] for k in keep], [final[k] for k in keep]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("grouped", [False, True])
def test_follows_the_paper(method, grouped: bool) -> None:
    boxes, scores, groups, valid = example()
    groups = groups if grouped else None
    kept = soft_nms(boxes, scores, groups, valid, method=method, top=60, iou=0.3, sigma=0.5, min_score=0.05)
    for i in range(2):
        group = groups[i] if groups is not None else None
        index, final = by_the_paper(boxes[i], scores[i], group, valid[i], method, 0.3, 0.5, 0.05)
        assert kept.index[i, kept.valid[i]].tolist() == index
        torch.testing.assert_close(kept.scores[i, kept.valid[i]], torch.tensor(final))
        assert 5 < len(index) < 60
    assert kept.scores[~kept.valid].eq(0).all()
    few = soft_nms(boxes, scores, groups, valid, method=method, top=4, iou=0.3, sigma=0.5, min_score=0.05)
    assert torch.equal(few.index, kept.index[:, :4])


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("min_score", [0.0, 0.05])
def test_both_kernels_agree(gaussian: bool, min_score: float) -> None:
    """Where scores tie, boxes are doubles of each other, and with `min_score` 0 boxes of score 0 are kept too."""
    boxes, scores, groups, valid = example(m=40)
    twice = [torch.cat([x, x], dim=1) for x in (boxes, scores, groups, valid)]
    for some in (groups.repeat(1, 2), None):
        arguments = (*twice[:2], some, twice[3], gaussian, 100, 0.3, 0.5, min_score)
        index, final, kept = torch.ops.twostage.soft_nms(*arguments)
        expected = on_accelerators(*arguments)
        assert torch.equal(index, expected[0])
        assert torch.equal(kept, expected[2])
        torch.testing.assert_close(final, expected[1], rtol=1e-5, atol=0)


def test_a_box_or_score_that_is_nan_takes_no_part() -> None:
    boxes, scores, _, _ = example(n=1, m=12)
    valid = torch.ones(1, 12, dtype=torch.bool)
    expected = soft_nms(boxes, scores, None, valid & (torch.arange(12) > 1), method="gaussian", top=12)
    boxes[0, 0, 2], scores[0, 1] = torch.nan, torch.nan
    for mine, other in zip(soft_nms(boxes, scores, None, valid, method="gaussian", top=12), expected, strict=True):
        assert torch.equal(mine, other)


def test_an_overlap_at_the_threshold_does_not_decay() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]]])
    kept = soft_nms(
        boxes, torch.tensor([[0.9, 0.8]]), None, torch.ones(1, 2, dtype=torch.bool), method="linear", iou=0.5, top=2
    )
    torch.testing.assert_close(kept.scores, torch.tensor([[0.9, 0.8]]))


@pytest.mark.parametrize("iou", [0.3, 0.5])
def test_linear_decay_shows_above_one_minus_iou_what_hard_nms_keeps(iou: float) -> None:
    """A box that hard NMS drops keeps less than `1 - iou` of its score: images of good detections do not change."""
    boxes, scores, groups, valid = example(n=6, m=80, seed=1)
    soft = soft_nms(boxes, scores, groups, valid, method="linear", top=80, iou=iou)
    hard = nms(boxes, scores, groups, valid, iou=iou, top=80)
    for i in range(6):
        shown = soft.index[i, soft.valid[i] & (soft.scores[i] >= 1 - iou)].tolist()
        kept = [k for k in hard.index[i, hard.valid[i]].tolist() if scores[i, k] >= 1 - iou]
        assert shown == kept
        assert soft.valid[i].sum() > hard.valid[i].sum()


def test_literal_decay() -> None:
    # IoU of the first two is 0.5.
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [50.0, 50.0, 60.0, 60.0]]])
    scores, valid = torch.tensor([[0.9, 0.8, 0.3]]), torch.ones(1, 3, dtype=torch.bool)
    linear = soft_nms(boxes, scores, None, valid, method="linear", top=3)
    assert linear.index.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(linear.scores, torch.tensor([[0.9, 0.4, 0.3]]))
    gaussian = soft_nms(boxes, scores, None, valid, method="gaussian", top=3, sigma=0.25)
    torch.testing.assert_close(gaussian.scores, torch.tensor([[0.9, 0.3, 0.8 * math.exp(-1)]]))
    assert gaussian.index.tolist() == [[0, 2, 1]]


def test_a_narrow_gaussian_is_hard_nms_of_all_that_overlap() -> None:
    boxes, scores, groups, valid = example(seed=3)
    soft = soft_nms(boxes, scores, groups, valid, method="gaussian", top=60, sigma=1e-9)
    hard = nms(boxes, scores, groups, valid, iou=1e-4, top=60)
    assert torch.equal(soft.index, hard.index)
    torch.testing.assert_close(soft.scores[hard.valid], scores.gather(1, hard.index)[hard.valid])


def test_nothing_to_keep_and_more_wanted_than_there_is() -> None:
    for n, m in ((0, 4), (2, 0), (2, 4)):
        kept = soft_nms(
            torch.zeros(n, m, 4), torch.zeros(n, m), None, torch.zeros(n, m, dtype=torch.bool), method="linear", top=6
        )
        assert kept.index.shape == kept.scores.shape == kept.valid.shape == (n, 6)
        assert not kept.valid.any()


def test_bf16_scores_decay_in_float32() -> None:
    boxes, scores, groups, valid = example()
    half = soft_nms(boxes, scores.bfloat16(), groups, valid, method="gaussian", top=20)
    exact = soft_nms(boxes, scores.bfloat16().float(), groups, valid, method="gaussian", top=20)
    assert torch.equal(half.scores, exact.scores)


def test_unknown_method() -> None:
    boxes, scores, groups, valid = example()
    unchecked = getattr(soft_nms, "__wrapped__", soft_nms)  # users run without the checks of types
    with pytest.raises(ValueError, match="known: linear"):
        unchecked(boxes, scores, groups, valid, method="hard", top=3)


def test_operator_is_well_formed() -> None:
    boxes, scores, groups, valid = example(m=7)
    for group in (None, groups):
        torch.library.opcheck(torch.ops.twostage.soft_nms, (boxes, scores, group, valid, True, 5, 0.3, 0.5, 1e-3))
