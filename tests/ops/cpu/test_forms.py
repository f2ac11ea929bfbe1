"""Every form of a layer is the same layer, and the one that is chosen is no slower than torch's own operator."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, linear

from twostage.ops.cpu import choice, forms, packed
from twostage.ops.cpu.choice import Call, Choices
from twostage.ops.cpu.forms import ChosenConv, ChosenLinear, conv_forms, linear_forms
from twostage.ops.plain import Activation, Window


@settings(max_examples=60)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 40),
    d=st.integers(1, 40),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    kernel=st.sampled_from([1, 3, 7]),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    add=st.booleans(),
    activation=st.sampled_from(["none", "relu", "hardswish"]),
)
def test_every_form_is_the_same_convolution(
    n: int, c: int, d: int, h: int, w: int, kernel: int, stride: int, bias: bool, add: bool, activation: Activation
) -> None:
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)
    weight, shift = torch.randn(d, c, kernel, kernel) / kernel, torch.randn(d) if bias else None
    window = Window((stride, stride), (kernel // 2, kernel // 2))
    expected = conv2d(x, weight, shift, *window)
    summand = torch.randn_like(expected).contiguous(memory_format=torch.channels_last) if add else None
    expected = expected if summand is None else expected + summand
    expected = {"none": expected, "relu": expected.relu(), "hardswish": torch.nn.functional.hardswish(expected)}[
        activation
    ]
    with torch.inference_mode():
        for name, make in conv_forms(weight, shift, window).items():
            given_add = None if summand is None else summand.clone(memory_format=torch.channels_last)
            result = make()(x, activation, given_add)
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_is_the_same_linear_layer(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(2, 7, 33), torch.randn(9, 33), torch.randn(9)
    expected = linear(x, weight, bias)
    made = linear_forms(weight.to(dtype), bias.to(dtype))
    assert "plain" in made
    with torch.inference_mode():
        for make in made.values():
            error = (make()(x.to(dtype)).float() - expected).abs().max() / expected.abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("window", [Window(padding=(1, 1)), Window((2, 2), (1, 1)), Window((2, 2)), Window()])
@pytest.mark.parametrize("add", [False, True])
def test_a_chosen_convolution_is_right_from_the_first_call(
    window: Window, add: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial reads a part of the input, and leaves input and summand as they are."""
    monkeypatch.setattr(forms, "_SMALL", 0)
    monkeypatch.setattr(forms, "_TRIAL", 1e6)
    kernel = 3 if window.padding[0] else 1
    weight, bias = torch.randn(16, 16, kernel, kernel) / 10, torch.randn(16)
    conv = ChosenConv(weight, bias, window)
    for shape in ((1, 16, 50, 40), (3, 16, 5, 6), (1, 16, 50, 40)):
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        expected = conv2d(x, weight, bias, *window)
        summand = torch.randn_like(expected).contiguous(memory_format=torch.channels_last) if add else None
        expected = (expected if summand is None else expected + summand).relu()
        with torch.inference_mode():
            torch.testing.assert_close(conv(x, "relu", summand), expected, rtol=1e-3, atol=1e-3)
    assert len(conv.forms.chosen) == 2
    assert set(conv.forms.chosen.values()) <= set(conv.forms.makers)


def test_a_chosen_linear_layer_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_SMALL", 0)
    weight, bias = torch.randn(64, 48), torch.randn(64)
    layer = ChosenLinear(weight, bias)
    for rows in (300, 1, 0):
        x = torch.randn(rows, 48)
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert layer.forms.chosen


def test_winograd_is_left_out_where_matrix_products_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_SMALL", 0)
    tried: list[str] = []
    monkeypatch.setattr(Choices, "choose", lambda self, layer, names, forms, **_: tried.extend(names) or names[0])
    conv = ChosenConv(torch.randn(16, 16, 3, 3), None, Window(padding=(1, 1)))
    x = torch.randn(1, 16, 40, 40).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        conv(x)
        assert "Winograd" in tried
        tried.clear()
        torch.set_float32_matmul_precision("medium")
        try:
            conv(x)  # of the same shape
        finally:
            torch.set_float32_matmul_precision("highest")
    assert tried
    assert not [name for name in tried if "Winograd" in name]


def test_small_layers_are_not_tried() -> None:
    conv = ChosenConv(torch.randn(8, 8, 3, 3), None, Window(padding=(1, 1)))
    with torch.inference_mode():
        conv(torch.randn(1, 8, 20, 20).contiguous(memory_format=torch.channels_last))
    assert not conv.forms.chosen


def test_a_machine_without_onednn_has_forms_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "serves", lambda device, dtype: False)
    assert list(conv_forms(torch.randn(8, 8, 3, 3), None, Window(padding=(1, 1)))) == ["plain", "Winograd"]
    assert list(conv_forms(torch.randn(8, 8, 1, 1), None, Window())) == ["plain", "plain product"]
    assert list(linear_forms(torch.randn(8, 8), None)) == ["plain"]


def test_the_number_of_regions_makes_few_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head has another number of masks for each image: a trial for each would cost more than the predictions."""
    tried: list[int] = []

    def note(calls: Mapping[str, Call]) -> tuple[str, bool]:
        tried.append(len(next(iter(calls.values()))()))
        return next(iter(calls)), True

    monkeypatch.setattr(choice, "fastest", note)
    conv = ChosenConv(torch.randn(64, 64, 3, 3), None, Window(padding=(1, 1)))
    with torch.inference_mode():
        for regions in range(5, 105):
            conv(torch.randn(regions, 64, 14, 14).contiguous(memory_format=torch.channels_last))
    assert 1 <= len(tried) <= 3
    assert max(tried) < 40  # and of the many regions a trial takes a few


def test_without_packed_weights_the_plain_operator_stays_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "serves", lambda *_: False)
    offered: list[set[str]] = []

    def note(calls: Mapping[str, Call]) -> tuple[str, bool]:
        offered.append(set(calls))
        return "plain", True

    monkeypatch.setattr(choice, "fastest", note)
    conv = ChosenConv(torch.randn(64, 3, 3, 3), None, Window(padding=(1, 1)))
    with torch.inference_mode():
        conv(torch.randn(1, 3, 600, 800).contiguous(memory_format=torch.channels_last))
    assert offered == [{"plain", "Winograd"}]


@pytest.mark.skipif(not packed.serves("cpu", torch.bfloat16), reason="this torch has no packed layers")
@pytest.mark.parametrize(("side", "tried"), [(32, True), (128, False)])
def test_a_large_sum_in_bfloat16_is_fused(monkeypatch: pytest.MonkeyPatch, side: int, tried: bool) -> None:
    """Plain forms add to the map in a pass of its own, which costs more in a model than in a trial."""
    offered: list[str] = []
    monkeypatch.setattr(choice, "fastest", lambda calls: (offered.extend(calls) or next(iter(calls)), True))
    conv = ChosenConv(torch.randn(256, 64, 1, 1).bfloat16(), None, Window())
    x, add = (torch.zeros(1, side, side, c, dtype=torch.bfloat16).permute(0, 3, 1, 2) for c in (64, 256))
    with torch.inference_mode():
        conv(x, "relu", add)
    assert ("plain product" in offered) == tried
    assert conv.forms.used == ["packed product"]
