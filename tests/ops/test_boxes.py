import torch
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from twostage.ops import boxes as ops


def random_boxes(*shape: int, seed: int = 0, size: float = 200.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=g) * size
    return torch.cat([corners, corners + torch.rand(*shape, 2, generator=g) * size / 3], dim=-1)


ADVERSARIAL = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],
        [0.0, 0.0, 10.0, 10.0],  # twice the same
        [10.0, 0.0, 20.0, 10.0],  # shares an edge
        [10.0, 10.0, 20.0, 20.0],  # shares a corner
        [5.0, 5.0, 5.0, 5.0],  # a point
        [5.0, 2.0, 5.0, 8.0],  # a line
        [-30.0, -30.0, -5.0, -5.0],  # outside
        [0.0, 0.0, 1e6, 1e6],
        [0.1, 0.1, 0.1000001, 0.1000001],
    ]
)


def test_area_and_iou_equal_torchvision() -> None:
    a, b = random_boxes(2, 50), random_boxes(2, 30, seed=1)
    assert torch.equal(ops.area(a[0]), tv.box_area(a[0]))
    for i in range(2):
        assert torch.equal(ops.iou(a, b)[i], tv.box_iou(a[i], b[i]))


def test_boxes_that_touch_contain_or_have_no_area() -> None:
    got, expected = ops.iou(ADVERSARIAL, ADVERSARIAL), tv.box_iou(ADVERSARIAL, ADVERSARIAL)
    assert torch.equal(got, expected.nan_to_num(0.0))


def test_inverted_boxes_overlap_nothing() -> None:
    inverted = torch.tensor([[10.0, 0.0, 0.0, 10.0], [10.0, 10.0, 0.0, 0.0]])
    assert ops.area(inverted).tolist() == [0, 0]
    assert ops.iou(inverted, ADVERSARIAL).eq(0).all()


def test_pairwise_gradients() -> None:
    a, b = random_boxes(3, 4).double().requires_grad_(), random_boxes(3, 2, seed=1).double().requires_grad_()
    torch.autograd.gradcheck(ops.iou, (a, b))


def test_gradients_of_boxes_without_area_are_finite() -> None:
    a = ADVERSARIAL.clone().requires_grad_()
    ops.iou(a, a).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_no_boxes_and_leading_dimensions() -> None:
    assert ops.iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)
    assert ops.iou(torch.zeros(2, 5, 3, 4), torch.zeros(2, 5, 0, 4)).shape == (2, 5, 3, 0)


def test_bf16_boxes_are_compared_in_float32() -> None:
    a = random_boxes(20).bfloat16()
    assert torch.equal(ops.iou(a, a), tv.box_iou(a.float(), a.float()))


def test_clip_equals_torchvision_image_by_image() -> None:
    boxes = random_boxes(2, 40, size=300) - 50
    sizes = torch.tensor([[100, 200], [180, 90]])
    clipped = ops.clip(boxes, sizes)
    for i in range(2):
        assert torch.equal(clipped[i], tv.clip_boxes_to_image(boxes[i], tuple(sizes[i].tolist())))
    assert torch.equal(ops.clip(boxes[0], sizes[0]), clipped[0])
    assert ops.clip(boxes.bfloat16(), sizes).dtype == torch.bfloat16
    assert ops.clip(torch.zeros(2, 0, 4), sizes).shape == (2, 0, 4)


side = st.floats(0.5, 300, width=32)
place = st.floats(-100, 500, width=32)


@settings(deadline=None, max_examples=50)
@given(place, place, side, side, place, place, side, side)
def test_iou_is_symmetric_and_bounded(x, y, w, h, x2, y2, w2, h2) -> None:
    a, b = torch.tensor([[x, y, x + w, y + h]]), torch.tensor([[x2, y2, x2 + w2, y2 + h2]])
    forth, back = ops.iou(a, b), ops.iou(b, a)
    torch.testing.assert_close(forth, back)
    assert 0 <= forth <= 1 + 1e-6
