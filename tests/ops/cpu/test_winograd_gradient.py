"""The gradients of Winograd's convolution beside those of torch's in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from twostage.ops.cpu.winograd_gradient import winograd_conv


@given(
    n=st.integers(1, 5),
    c=st.integers(1, 9),
    d=st.integers(1, 9),
    h=st.integers(1, 50),
    w=st.integers(1, 50),
    wanted=st.sets(st.sampled_from(["x", "weight", "bias"]), min_size=1),
    memory=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_they_are_those_of_the_convolution(
    n: int, c: int, d: int, h: int, w: int, wanted: set[str], memory: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, gradient = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((n, c, h, w), (d, c, 3, 3), (d,), (n, d, h, w))
    )
    x, gradient = x.contiguous(memory_format=memory), gradient.contiguous(memory_format=memory)
    given = {"x": x, "weight": weight, "bias": bias}
    leaves = [given[name].requires_grad_() for name in sorted(wanted)]
    expected = conv2d(x, weight, bias, padding=1)
    result = winograd_conv(x, weight, bias)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(result, leaves, gradient), torch.autograd.grad(expected, leaves, gradient)
    )


@pytest.mark.parametrize("shape", [(2, 160, 40, 80), (3, 160, 18, 14)])
def test_several_bands_are_the_same(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    weight = (torch.randn(128, 160, 3, 3) / 40).requires_grad_()
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    gradient = torch.randn(shape[0], 128, *shape[2:])
    expected = torch.autograd.grad(conv2d(*exact, padding=1), exact, gradient.double())
    result = torch.autograd.grad(winograd_conv(x, weight, None), [x, weight], gradient)
    for mine, other in zip(result, expected, strict=True):
        assert (mine - other).abs().max() / other.abs().max() < 5e-5


def test_an_activation_may_follow_in_place() -> None:
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3)
    (result,) = torch.autograd.grad(winograd_conv(x, weight, None).relu_().sum(), [x])
    (expected,) = torch.autograd.grad(conv2d(x, weight, padding=1).relu().sum(), [x])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
