"""The gradients of depthwise convolutions are torch's in double precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from twostage.ops.convolution import convolve
from twostage.ops.cpu.depthwise_gradient import depthwise_conv
from twostage.ops.plain import Window


def made(channels: int, size: int, rows: int, columns: int, images: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """An input, kernels and biases that learn."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(images, channels, rows, columns, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, size, size, generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(channels, generator=generator).requires_grad_()


def gradients(y: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    slope = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape)
    return list(torch.autograd.grad((y.double() * slope).sum(), inputs))


@given(
    st.integers(2, 9),
    st.integers(2, 7),
    st.sampled_from([1, 2]),
    st.integers(0, 3),
    st.integers(7, 20),
    st.integers(7, 20),
)
def test_gradients_are_torchs(channels: int, size: int, stride: int, padding: int, rows: int, columns: int) -> None:
    given = made(channels, size, rows, columns)
    window = Window((stride, stride), (padding, padding), groups=channels)
    y = depthwise_conv(*given, window)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in given)
    expected = conv2d(*exact, *window)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)
    for one, other in zip(gradients(y, given), gradients(expected, exact), strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("size", "padding"), [(4, 1), (6, 2)])
@pytest.mark.parametrize("missing", [0, 1])
def test_kernels_of_stride_two_by_parity(size: int, padding: int, missing: int) -> None:
    """With one of input and kernels fixed too, as in frozen stages."""
    given = made(8, size, 12, 16)
    given[missing].requires_grad_(False)
    window = Window((2, 2), (padding, padding), groups=8)
    exact = tuple(tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in given)
    learned, expected = (
        gradients(y, tuple(t for t in inputs if t.requires_grad))
        for y, inputs in ((convolve(*given, window), given), (conv2d(*exact, *window), exact))
    )
    for one, other in zip(learned, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-3, rtol=1e-4)


def test_in_bfloat16_the_gradients_are_computed_in_float32() -> None:
    """Their error is that of the output's rounding alone."""
    x, weight, bias = made(8, 5, 12, 16)
    window = Window(padding=(2, 2), groups=8)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(x, weight, bias, window)
        found = torch.autograd.grad(y.float().sum(), (x, weight, bias))
    assert y.dtype == torch.bfloat16
    expected = torch.autograd.grad(conv2d(x, weight, bias, *window).sum(), (x, weight, bias))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
