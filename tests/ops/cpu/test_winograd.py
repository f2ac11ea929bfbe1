"""Winograd's convolution beside torch's in float64: any map, any batch, with what follows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from twostage.ops.cpu import packed
from twostage.ops.cpu.winograd import WinogradConv, suits
from twostage.ops.cpu.winograd_grouped import GroupedWinogradConv
from twostage.ops.plain import PlainConv, Window


@given(
    n=st.integers(1, 5),
    c=st.integers(1, 9),
    d=st.integers(1, 9),
    h=st.integers(1, 70),
    w=st.integers(1, 70),
    bias=st.booleans(),
    add=st.booleans(),
    grouped=st.booleans(),
)
def test_it_is_the_convolution(n: int, c: int, d: int, h: int, w: int, bias: bool, add: bool, grouped: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, summand = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((n, c, h, w), (d, c, 3, 3), (n, d, h, w))
    )
    shift = torch.randn(d, generator=generator, dtype=torch.float64) if bias else None
    expected = conv2d(x, weight, shift, padding=1)
    expected = (expected + summand if add else expected).relu()
    given_add = summand.clone(memory_format=torch.channels_last) if add else None
    conv = GroupedWinogradConv.of(weight, shift, PlainConv.of) if grouped else WinogradConv.of(weight, shift)
    result = conv(x, "relu", given_add)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 64, 64, 40, 41), (2, 32, 300, 9, 70), (3, 16, 520, 1, 1)])
def test_many_channels_are_the_same(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    n, c, d, h, w = shape
    x, weight, bias, add = torch.randn(n, c, h, w), torch.randn(d, c, 3, 3), torch.randn(d), torch.randn(n, d, h, w)
    expected = (conv2d(x.double(), weight.double(), bias.double(), padding=1) + add).relu()
    forms = [WinogradConv.of(weight, bias)]
    if packed.serves("cpu", torch.float32):
        forms.append(GroupedWinogradConv.of(weight, bias))
    for form in forms:
        result = form(x, "relu", add.clone(memory_format=torch.channels_last))
        assert (result - expected).abs().max() / expected.max() < 5e-5


def test_its_error_in_float32_is_a_few_hundred_thousandths_of_the_largest_output() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 40, 40), torch.randn(128, 256, 3, 3) / 48
    expected = conv2d(x.double(), weight.double(), padding=1)
    error = (WinogradConv.of(weight, None)(x) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 5e-5


@pytest.mark.parametrize(
    ("weight", "window", "expected"),
    [
        (torch.empty(128, 128, 3, 3), Window(padding=(1, 1)), True),
        (torch.empty(64, 256, 3, 3), Window(padding=(1, 1)), True),
        (torch.empty(128, 128, 1, 1), Window(), False),
        (torch.empty(128, 128, 3, 3), Window((2, 2), (1, 1)), False),
        (torch.empty(128, 128, 3, 3), Window(), False),
        (torch.empty(128, 128, 3, 3), Window(padding=(1, 1), dilation=(2, 2)), False),
        (torch.empty(256, 128, 3, 3), Window(padding=(1, 1), groups=2), False),
        (torch.empty(128, 128, 3, 3, dtype=torch.bfloat16), Window(padding=(1, 1)), False),
    ],
)
def test_it_serves_3_x_3_convolutions_of_stride_1_in_float32(
    weight: torch.Tensor, window: Window, expected: bool
) -> None:
    assert suits(weight, window) is expected
