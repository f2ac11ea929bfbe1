import pytest
import torch
import torchvision.ops as tv
from torch import Tensor

from twostage.ops.accelerator import max_bins
from twostage.ops.roi_pool import roi_pool

SCALE = 1 / 16

ADVERSARIAL = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 320.0, 240.0],
        [8.0, 8.0, 24.0, 40.0],  # halves: rounded away from 0
        [-24.0, -40.0, -8.0, -8.0],
        [-100.0, -100.0, 60.0, 60.0],
        [300.0, 200.0, 500.0, 400.0],
        [100.0, 90.0, 60.0, 30.0],  # inverted
        [400.0, 300.0, 500.0, 400.0],  # outside
        [50.0, 50.0, 51.0, 51.0],
        [-2000.0, -2000.0, 3000.0, 3000.0],
    ]
)


def example(n: int = 2, p: int = 30, c: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(n, c, 15, 20, generator=g).relu()  # many ties at 0
    corners = torch.rand(n, p, 2, generator=g) * torch.tensor([320.0, 240.0]) - 20
    boxes = torch.cat([corners, corners + 200 * torch.rand(n, p, 2, generator=g) ** 2], dim=-1)
    return features, torch.cat([boxes, ADVERSARIAL.expand(n, -1, -1)], dim=1)


def reference(features: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    out = tv.roi_pool(features, list(boxes), size, SCALE)
    return out.view(*boxes.shape[:2], *out.shape[1:])


@pytest.mark.parametrize("size", [(7, 7), (2, 5)])
def test_equals_torchvision_to_the_bit(size: tuple[int, int]) -> None:
    features, boxes = example()
    assert torch.equal(roi_pool(features, boxes, scale=SCALE, output_size=size), reference(features, boxes, size))


@pytest.mark.parametrize("size", [(7, 7), (2, 5)])
def test_gradient_equals_torchvision(size: tuple[int, int]) -> None:
    features, boxes = example()
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    out = roi_pool(ours, boxes, scale=SCALE, output_size=size)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad(out, ours, gradient)
    (expected,) = torch.autograd.grad(reference(theirs, boxes, size), theirs, gradient)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_fixed_shapes_equal_torchvision_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(feature: Tensor, rows: Tensor, columns: Tensor, *, most: tuple[int, int]) -> Tensor:
        return max_bins.forward(feature, rows, columns, most).permute(0, 1, 4, 2, 3)

    monkeypatch.setattr("twostage.ops.roi_pool.max_bins", fixed)
    features, boxes = example()
    assert torch.equal(roi_pool(features, boxes, scale=SCALE, max_cells=(15, 20)), reference(features, boxes, (7, 7)))
    inside = boxes.clamp(min=0).minimum(torch.tensor([320.0, 240.0, 320.0, 240.0]))
    assert torch.equal(roi_pool(features, inside, scale=SCALE), reference(features, inside, (7, 7)))


def test_bf16_is_exact_and_memory_channels_last() -> None:
    features, boxes = example()
    half = features.bfloat16()
    out = roi_pool(half, boxes, scale=SCALE)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.float(), reference(half.float(), boxes, (7, 7)))
    assert out.permute(0, 1, 3, 4, 2).is_contiguous()


def test_no_boxes_and_no_images() -> None:
    features, boxes = example()
    features.requires_grad_()
    out = roi_pool(features, boxes[:, :0], scale=SCALE)
    assert out.shape == (2, 0, 6, 7, 7)
    assert torch.autograd.grad(out.sum(), features)[0].eq(0).all()
    assert roi_pool(features[:0], boxes[:0], scale=SCALE).shape == (0, boxes.shape[1], 6, 7, 7)


def test_boxes_that_are_no_numbers_do_no_harm_to_others() -> None:
    features, boxes = example()
    bad = boxes.clone()
    bad[:, 0], bad[:, 1, 2], bad[:, 2, 0] = torch.nan, torch.inf, -torch.inf
    assert torch.equal(roi_pool(features, bad, scale=SCALE)[:, 3:], roi_pool(features, boxes, scale=SCALE)[:, 3:])
