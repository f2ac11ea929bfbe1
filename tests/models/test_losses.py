import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision import ops
from torchvision.models.detection.roi_heads import fastrcnn_loss

from twostage.models.losses import (
    binary_focal,
    box_loss,
    class_loss,
    class_losses,
    mask_loss,
    no_reduce,
    objectness_loss,
    one_over_sampled,
    overlap_loss,
)

N, S, K = 3, 16, 5


def regions(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, deltas per class, classes with background 0, and goals of some regions."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, S, K + 1, generator=g)
    deltas = torch.randn(N, S, K, 4, generator=g)
    classes = torch.randint(-2 * K, K + 1, (N, S), generator=g).clamp(min=0)
    return logits, deltas, classes, torch.randn(N, S, 4, generator=g)


def own(deltas: Tensor, classes: Tensor) -> Tensor:
    index = (classes - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
    return deltas.gather(2, index).squeeze(2)


def test_equal_to_torchvisions_fast_rcnn_loss() -> None:
    logits, deltas, classes, goal = regions()
    with_background = torch.cat([torch.zeros(N, S, 1, 4), deltas], dim=2)
    expected_class, expected_box = fastrcnn_loss(
        logits.flatten(0, 1), with_background.flatten(0, 1).flatten(1), [*classes], [*goal]
    )
    valid = torch.ones(N, S, dtype=torch.bool)
    weight = torch.full((N,), 1 / (N * S))
    torch.testing.assert_close(class_loss(logits, classes, valid, weight), expected_class, rtol=1e-6, atol=1e-6)
    found = box_loss(own(deltas, classes), goal, classes > 0, weight, beta=1 / 9)
    torch.testing.assert_close(found, expected_box, rtol=1e-6, atol=1e-6)


def test_padding_counts_for_nothing() -> None:
    """Not even where a padded row's numbers are infinite."""
    logits, deltas, classes, goal = regions()
    valid = torch.arange(S).expand(N, -1) < torch.tensor([[S], [4], [0]])
    weight = torch.full((N,), 0.1)
    rest = torch.ones(1, int(valid.sum()), dtype=torch.bool)
    unpadded = class_loss(logits[valid][None], classes[valid][None], rest, weight[:1])
    torch.testing.assert_close(class_loss(logits, classes, valid, weight), unpadded)

    positive = (classes > 0) & valid
    found = box_loss(own(deltas, classes), goal, positive, weight, beta=1.0)
    wild = own(deltas, classes).masked_fill(~positive[..., None], torch.inf).requires_grad_()
    again = box_loss(wild, goal, positive, weight, beta=1.0)
    torch.testing.assert_close(again, found)
    again.backward()
    assert wild.grad.isfinite().all()
    assert (wild.grad[~positive] == 0).all()


def test_no_valid_region_costs_nothing() -> None:
    logits, deltas, classes, goal = regions()
    none = torch.zeros(N, S, dtype=torch.bool)
    assert class_loss(logits, classes, none, one_over_sampled(none, no_reduce)) == 0
    assert box_loss(own(deltas, classes), goal, none, torch.ones(N), beta=1.0) == 0
    assert objectness_loss(logits[..., 0], none, none, torch.ones(N)) == 0


@pytest.mark.parametrize(("delta", "beta", "expected"), [(2.0, 1.0, 1.5), (0.5, 1.0, 0.125), (0.5, 1 / 9, 4 / 9)])
def test_smooth_l1_of_the_papers(delta: float, beta: float, expected: float) -> None:
    """Fast R-CNN, equation 3; with sigma 3 (beta 1/9) |x| - 0.5 / 9 from 1/9 on."""
    deltas = torch.tensor([[[delta, 0, 0, 0]]])
    found = box_loss(deltas, torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool), torch.ones(1), beta=beta)
    assert float(found) == pytest.approx(expected)


def test_beta_0_is_l1() -> None:
    """detectron2 and mmdetection."""
    deltas = torch.tensor([[[0.5, -0.25, 0, 2]]])
    found = box_loss(deltas, torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool), torch.ones(1), beta=0.0)
    assert float(found) == 2.75


def test_objectness_is_binary_cross_entropy() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    positive = torch.tensor([[True, True, False]])
    expected = -(torch.tensor([0.5]).log() + logits[0, 1:2].sigmoid().log() + (-logits[0, 2:3]).sigmoid().log())
    found = objectness_loss(logits, positive, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0.5]))
    torch.testing.assert_close(found, expected[0] / 2)


def test_arithmetic_is_float32_whatever_the_networks_precision() -> None:
    logits, deltas, classes, goal = regions()
    valid = torch.ones(N, S, dtype=torch.bool)
    assert class_loss(logits.bfloat16(), classes, valid, torch.ones(N)).dtype == torch.float32
    assert box_loss(own(deltas, classes).bfloat16(), goal, valid, torch.ones(N), beta=1.0).dtype == torch.float32
    assert objectness_loss(logits[..., 0].bfloat16(), valid, valid, torch.ones(N)).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [("giou", ops.generalized_box_iou_loss), ("diou", ops.distance_box_iou_loss), ("ciou", ops.complete_box_iou_loss)],
)
def test_overlap_losses_of_positives_and_no_gradient_of_the_rest(kind: str, theirs) -> None:
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(2, N, S, 2, generator=g) * 30
    boxes, truth = torch.cat([corner, corner + 5 + torch.rand(2, N, S, 2, generator=g) * 40], dim=-1)
    positive = torch.rand(N, S, generator=g) < 0.4
    wild = boxes.masked_fill(~positive[..., None], torch.inf).requires_grad_()
    found = overlap_loss(wild, truth, positive, torch.full((N,), 0.5), kind)  # type: ignore[arg-type]
    torch.testing.assert_close(found, 0.5 * theirs(boxes[positive], truth[positive]).sum())
    found.backward()
    assert wild.grad.isfinite().all()
    assert not wild.grad[~positive].any()
    same = overlap_loss(truth, truth, positive, torch.ones(N), kind)  # type: ignore[arg-type]
    torch.testing.assert_close(same, torch.tensor(0.0), atol=1e-4, rtol=0)


def test_class_losses_by_their_formulas() -> None:
    logits, _, classes, _ = regions()
    p = logits.softmax(dim=2).gather(2, classes[..., None])[..., 0]
    torch.testing.assert_close(class_losses(logits, classes), -p.log())
    torch.testing.assert_close(class_losses(logits, classes, gamma=2.0), -((1 - p) ** 2) * p.log())
    weights = torch.linspace(0.5, 2, K + 1)
    torch.testing.assert_close(class_losses(logits, classes, class_weights=weights), -weights[classes] * p.log())
    smooth = cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(class_losses(logits, classes, smoothing=0.1).flatten(), smooth)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_losses_of_what_is_told_surely_have_a_gradient(gamma: float) -> None:
    """The paper's table has gamma = 0.5, and that power is infinitely steep where nothing is left to learn."""
    logits = torch.tensor([[[200.0, 0.0], [0.0, 200.0]]], requires_grad=True)
    class_losses(logits, torch.tensor([[0, 0]]), gamma=gamma).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1].abs().sum() > 0
    one = torch.tensor([200.0, -200.0], requires_grad=True)
    binary_focal(one, torch.tensor([1.0, 1.0]), gamma, 0.25).sum().backward()
    assert one.grad is not None
    assert one.grad.isfinite().all()
    assert one.grad[1] < 0


def test_focal_objectness_is_torchvisions() -> None:
    g = torch.Generator().manual_seed(0)
    logits, positive = torch.randn(N, S, generator=g), torch.rand(N, S, generator=g) < 0.3
    valid, weight = torch.ones(N, S, dtype=torch.bool), torch.ones(N)
    found = objectness_loss(logits, positive, valid, weight, focal=(2.0, 0.25))
    torch.testing.assert_close(found, ops.sigmoid_focal_loss(logits, positive.float(), 0.25, 2.0, "sum"))


def test_mask_loss_is_the_mean_over_cells_of_positives() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(N, S, 4, 4, generator=g)
    goal = (torch.rand(N, S, 4, 4, generator=g) < 0.5).float()
    positive = torch.rand(N, S, generator=g) < 0.4
    found = mask_loss(logits, goal, positive, one_over_sampled(positive, no_reduce))
    p = logits.sigmoid()[positive]
    each = -(goal[positive] * p.log() + (1 - goal[positive]) * (1 - p).log())
    torch.testing.assert_close(found, each.mean())
