import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder

from twostage.ops.boxes import clip
from twostage.ops.deltas import CLAMP, BoxCoder

CODER = BoxCoder()


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=g) * 700
    return torch.cat([corners, corners + 1 + torch.rand(*shape, 2, generator=g) * 300], dim=-1)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_bits_equal_torchvision(weights) -> None:
    ours, theirs = BoxCoder(weights), TorchvisionBoxCoder(weights)
    anchors, boxes = random_boxes(500), random_boxes(500, seed=1)
    deltas = ours.encode(boxes, anchors)
    assert torch.equal(deltas, theirs.encode_single(boxes, anchors))
    large = deltas * 3  # some beyond the clamp
    assert torch.equal(ours.decode(large, anchors), theirs.decode_single(large, anchors))


def test_literal_values() -> None:
    anchor, box = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 5.0, 25.0, 15.0]])
    expected = torch.tensor([[1.0, 0.0, math.log(2), -math.log(2)]])
    torch.testing.assert_close(CODER.encode(box, anchor), expected)
    torch.testing.assert_close(
        BoxCoder((10.0, 10.0, 5.0, 5.0)).encode(box, anchor), expected / torch.tensor([0.1, 0.1, 0.2, 0.2])
    )


def test_class_specific_deltas_broadcast_over_their_anchor() -> None:
    anchors, deltas = random_boxes(2, 7), torch.randn(2, 7, 3, 4)
    boxes = CODER.decode(deltas, anchors[:, :, None])
    for k in range(3):
        assert torch.equal(boxes[:, :, k], CODER.decode(deltas[:, :, k], anchors))
    assert torch.equal(CODER.decode(deltas[:, :, 0], anchors[0])[0], boxes[0, :, 0])


def test_growth_is_clamped_on_one_side_or_both() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = CODER.decode(torch.tensor([[0.0, 0.0, 99.0, 99.0]]), anchor)
    torch.testing.assert_close(grown[0, 2:] - grown[0, :2], torch.tensor([1000.0, 1000.0]))
    shrink = torch.tensor([[0.0, 0.0, -99.0, -99.0]])
    assert (CODER.decode(shrink, anchor)[0, 2:] - CODER.decode(shrink, anchor)[0, :2]).max() < 1e-3
    both = BoxCoder(clamp_two_sided=True).decode(shrink, anchor)
    torch.testing.assert_close(both[0, 2:] - both[0, :2], torch.tensor([16.0, 16.0]) * math.exp(-CLAMP))


def test_boxes_and_anchors_without_area_stay_finite() -> None:
    nothing, anchors = torch.zeros(3, 4), random_boxes(3)
    for a in (anchors, nothing):
        for b in (anchors, nothing):
            b = b.clone().requires_grad_()
            deltas = CODER.encode(b, a)
            assert deltas.isfinite().all()
            assert torch.autograd.grad((deltas * 0).sum(), b)[0].isfinite().all()


def test_bf16_deltas_give_float32_boxes() -> None:
    anchors, deltas = random_boxes(50), torch.randn(50, 4).bfloat16()
    assert torch.equal(CODER.decode(deltas, anchors), CODER.decode(deltas.float(), anchors))


def test_no_boxes() -> None:
    assert CODER.encode(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4)).shape == (2, 0, 4)
    assert CODER.decode(torch.zeros(2, 0, 9, 4), torch.zeros(2, 0, 1, 4)).shape == (2, 0, 9, 4)


def test_gradients() -> None:
    anchors, deltas = random_boxes(5).double().requires_grad_(), torch.randn(5, 4).double().requires_grad_()
    torch.autograd.gradcheck(CODER.decode, (deltas, anchors))
    torch.autograd.gradcheck(CODER.encode, (random_boxes(5, seed=2).double().requires_grad_(), anchors))


coordinate = st.floats(-500, 1500)
side, anchor_side = st.floats(0.05, 900), st.floats(20, 900)


@settings(deadline=None, max_examples=50)
@given(
    st.tuples(coordinate, coordinate, side, side),
    st.tuples(coordinate, coordinate, st.floats(20, 900), st.floats(20, 900)),
)
def test_decoding_undoes_encoding(b, a) -> None:
    box, anchor = (torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64) for x, y, w, h in (b, a))
    torch.testing.assert_close(CODER.decode(CODER.encode(box, anchor), anchor), box, rtol=1e-9, atol=1e-6)


def test_boxes_inside_are_decoded_and_clipped() -> None:
    anchors, sizes = random_boxes(2, 50), torch.tensor([[300, 400], [500, 250]])
    deltas = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(CODER.decode_inside(deltas, anchors, sizes), clip(CODER.decode(deltas, anchors), sizes))


def py_faster_rcnn(boxes: torch.Tensor, deltas: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`lib/fast_rcnn/bbox_transform.py`: `bbox_transform_inv`, then `clip_boxes`; x2 and y2 are the last pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    dx, dy, dw, dh = deltas.unbind(-1)
    w, h = x2 - x1 + 1.0, y2 - y1 + 1.0
    x, y = dx * w + x1 + 0.5 * w, dy * h + y1 + 0.5 * h
    w, h = dw.exp() * w, dh.exp() * h
    corners = [x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h]
    most = [width - 1, height - 1, width - 1, height - 1]
    return torch.stack([c.clamp(max=m).clamp(min=0) for c, m in zip(corners, most, strict=True)], dim=-1)


def test_edges_of_caffe_are_py_faster_rcnns() -> None:
    """A box there ends with its last pixel, here behind it."""
    theirs = random_boxes(1, 200).double().round()
    deltas = torch.randn(1, 200, 4, generator=torch.Generator().manual_seed(0)).double() / 3
    behind = torch.tensor([0, 0, 1, 1])
    found = BoxCoder(edges="caffe").decode_inside(deltas, theirs + behind, torch.tensor([[300, 500]]))
    torch.testing.assert_close(found, py_faster_rcnn(theirs, deltas, 300, 500) + behind)


def test_a_pixel_of_caffe_may_be_one_of_the_image_before_it_was_resized() -> None:
    """Boxes at twice the size, of which the last two pixels are the last one of the image."""
    theirs = random_boxes(1, 200).double().round()
    deltas = torch.randn(1, 200, 4, generator=torch.Generator().manual_seed(0)).double() / 3
    behind = torch.tensor([0, 0, 1, 1])
    coder, pixel = BoxCoder(edges="caffe"), torch.full((1, 1, 2), 2.0, dtype=torch.float64)
    found = coder.decode_inside(deltas, 2 * (theirs + behind), torch.tensor([[600, 1000]]), pixel)
    torch.testing.assert_close(found, 2 * (py_faster_rcnn(theirs, deltas, 300, 500) + behind))
