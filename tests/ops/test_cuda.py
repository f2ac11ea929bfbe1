"""On a GPU: the same numbers as on the CPU, and a host that never waits."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from twostage.ops.nms import nms
from twostage.ops.roi_align import roi_align
from twostage.ops.roi_pool import roi_pool
from twostage.ops.soft_nms import soft_nms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """Call it after the inputs are on the device: from then on whatever makes the host wait raises."""
    torch.zeros(1, device="cuda").item()  # the context is made
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def free(result: tuple[Tensor, ...]) -> list[Tensor]:
    torch.cuda.set_sync_debug_mode("default")
    return [tensor.cpu() for tensor in result]


def boxes_and_scores(n: int = 3, m: int = 700) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(n, m, 2, generator=g) * 200
    boxes = torch.cat([corners, corners + 5 + 60 * torch.rand(n, m, 2, generator=g)], dim=-1)
    return (
        boxes,
        torch.rand(n, m, generator=g),
        torch.randint(4, (n, m), generator=g),
        torch.rand(n, m, generator=g) > 0.1,
    )


def test_nms(no_waiting: Callable[[], None]) -> None:
    arguments = boxes_and_scores()
    expected = nms(*arguments, iou=0.6, top=300)
    there = [tensor.cuda() for tensor in arguments]
    no_waiting()
    for got, want in zip(free(nms(*there, iou=0.6, top=300)), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms(no_waiting: Callable[[], None], method) -> None:
    arguments = boxes_and_scores(m=60)
    expected = soft_nms(*arguments, method=method, top=50)
    there = [tensor.cuda() for tensor in arguments]
    no_waiting()
    index, scores, valid = free(soft_nms(*there, method=method, top=50))
    assert torch.equal(index, expected.index)
    assert torch.equal(valid, expected.valid)
    torch.testing.assert_close(scores, expected.scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_and_its_gradients(no_waiting: Callable[[], None], dtype: torch.dtype, ratio: int) -> None:
    g = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 8, 200 // s, 300 // s, generator=g).to(dtype) for s in (4, 8)]
    corners = torch.rand(2, 50, 2, generator=g) * 200 - 10
    boxes = torch.cat([corners, corners + 80 * torch.rand(2, 50, 2, generator=g)], dim=-1)
    levels, gradient = torch.randint(2, (2, 50), generator=g), torch.randn(2, 50, 8, 7, 7, generator=g).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        maps, sides = [f.to(device).requires_grad_() for f in features], boxes.to(device).requires_grad_()
        where, given = levels.to(device), gradient.to(device)
        if device == "cuda":
            no_waiting()
        out = roi_align(maps, sides, where, scales=(1 / 4, 1 / 8), sampling_ratio=ratio, max_samples=6)
        gradients = torch.autograd.grad(out, [sides, *maps], given)
        results.append(free((out.detach(), *gradients)))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=1e-3)


def test_roi_pool_and_its_gradient(no_waiting: Callable[[], None]) -> None:
    g = torch.Generator().manual_seed(0)
    features, gradient = torch.randn(2, 8, 15, 20, generator=g), torch.randn(2, 30, 8, 7, 7, generator=g)
    corners = torch.rand(2, 30, 2, generator=g) * 160
    boxes = torch.cat([corners, corners + 70 * torch.rand(2, 30, 2, generator=g)], dim=-1)
    results = []
    for device in ("cpu", "cuda"):
        maps, sides, given = features.to(device).requires_grad_(), boxes.to(device), gradient.to(device)
        if device == "cuda":
            no_waiting()
        out = roi_pool(maps, sides, scale=1 / 16)
        results.append(free((out.detach(), *torch.autograd.grad(out, maps, given))))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want)
