"""Depthwise convolutions with gradients from blocks of 3 x 3 taps: torch's numbers, for any kernel and stride."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from twostage.ops.cpu.depthwise_gradient import depthwise_conv
from twostage.ops.plain import Window


def example(n: int, c: int, h: int, w: int, kernel: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """An input, kernels and biases, all with gradients."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=g).contiguous(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in (x, torch.randn(c, 1, *kernel, generator=g), torch.randn(c, generator=g))]


@settings(max_examples=60)
@given(
    n=st.integers(1, 3),
    c=st.integers(2, 5),
    h=st.integers(7, 15),
    w=st.integers(7, 15),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 1 << 16),
)
def test_gradients_are_torchs(
    n: int, c: int, h: int, w: int, kernel: tuple, stride: tuple, padding: tuple, seed: int
) -> None:
    """Neighbouring images and rows lie beside each other in memory: no value may come from them."""
    inputs = example(n, c, h, w, kernel, seed)
    window = Window(stride, padding, (1, 1), c)
    y = depthwise_conv(*inputs, window)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = conv2d(*exact, *window)
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-4)
    scale = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    mine = torch.autograd.grad(y, inputs, scale)
    other = torch.autograd.grad(expected, exact, scale.double())
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bf16_maps_give_float32_gradients_to_float32_kernels(layout: torch.memory_format) -> None:
    x, weight, bias = example(2, 32, 12, 14, (5, 5))
    reduced = x.detach().bfloat16().contiguous(memory_format=layout).requires_grad_()
    window = Window((2, 2), (2, 2), (1, 1), 32)
    y = depthwise_conv(reduced, weight, bias, window)
    expected = conv2d(reduced.float(), weight, bias, *window)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-1)
    scale = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    mine = torch.autograd.grad(y, [reduced, weight, bias], scale)
    other = torch.autograd.grad(expected, [reduced, weight, bias], scale.float())
    assert [t.dtype for t in mine] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(mine[1], other[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(mine[0].float(), other[0].float(), rtol=2e-2, atol=2e-1)


def test_frozen_inputs_and_kernels_get_no_gradient() -> None:
    x, weight, _ = example(1, 4, 9, 9, (5, 5))
    window = Window((1, 1), (2, 2), (1, 1), 4)
    (of_weight,) = torch.autograd.grad(depthwise_conv(x.detach(), weight, None, window).sum(), [weight])
    (of_x,) = torch.autograd.grad(depthwise_conv(x, weight.detach(), None, window).sum(), [x])
    y = conv2d(x, weight, None, *window).sum()
    for mine, other in zip((of_x, of_weight), torch.autograd.grad(y, [x, weight]), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
