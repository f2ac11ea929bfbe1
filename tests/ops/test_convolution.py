"""Convolutions in training: torch's numbers in either form, the same form again, and plain where that is asked."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

from twostage.ops import convolution
from twostage.ops.convolution import convolve
from twostage.ops.cpu import choice
from twostage.ops.plain import Window

SAME = Window(padding=(1, 1))


def sample(channels: int = 128, side: int = 24) -> tuple[Tensor, Tensor]:
    """An input, and kernels that learn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, (torch.randn(channels, channels, 3, 3, generator=generator) / 30).requires_grad_()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The layers that were tried with their forms, of which Winograd's is the faster."""
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "fastest", lambda forms: (list(forms)[-1], False))
    return choice.choices().made


def test_a_large_layer_is_computed_in_the_faster_form_with_the_same_gradients(tried: dict[str, str]) -> None:
    x, weight = sample()
    convs = (convolve(x, weight, None, SAME), conv2d(x.double(), weight.double(), padding=1))
    gradient, expected = (torch.autograd.grad(conv.square().sum(), [weight])[0] for conv in convs)
    assert list(tried.values()) == ["Winograd"]
    assert 0 < (gradient - expected).abs().max() / expected.abs().max() < 5e-5


def test_a_decision_outlives_the_process_even_if_other_work_disturbed_it(tried: dict[str, str]) -> None:
    convolve(*sample(), None, SAME)
    choice._choices.cache_clear()  # as in a new process
    assert choice.choices().made == tried != {}


def test_regions_of_a_head_are_decided_apart_from_maps(tried: dict[str, str]) -> None:
    """9 regions of 8 x 8 pixels and a map of 24 x 24, as many."""
    x, weight = sample()
    convolve(x, weight, None, SAME)
    convolve(x.reshape(1, 128, 9, 64).permute(2, 1, 0, 3).reshape(9, 128, 8, 8), weight, None, SAME)
    assert len(tried) == 2


def test_both_forms_of_a_trial_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))
    x, weight = sample()
    forms = convolution._trial(x.shape, weight.shape, True, True)
    plain, winograd = forms["plain"](), forms["Winograd"]()
    assert 0 < (plain - winograd).abs().max() <= 1e-4 * plain.abs().max()


def test_a_trial_inside_of_checkpointing_leaves_its_graph_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))
    x, weight = sample(side=20)
    y = checkpoint(lambda: convolve(x, weight, None, SAME).relu(), use_reentrant=False)
    (gradient,) = torch.autograd.grad(y.sum(), [weight])
    (expected,) = torch.autograd.grad(conv2d(x, weight, padding=1).relu().sum(), [weight])
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-2)


def test_functional_transforms_use_torchs_operator(tried: dict[str, str]) -> None:
    x, weight = sample()
    x.requires_grad_()
    gradient = torch.func.grad(lambda kernels: convolve(x, kernels, None, SAME).sum())(weight.detach())
    expected = torch.func.grad(lambda kernels: conv2d(x, kernels, padding=1).sum())(weight.detach())
    torch.testing.assert_close(gradient, expected)
    assert not tried


@pytest.mark.parametrize(
    ("why", "channels", "side", "window"),
    [
        ("few channels", 64, 48, SAME),
        ("a small map", 128, 8, SAME),
        ("strides", 128, 48, Window((2, 2), (1, 1))),
        ("no padding", 128, 48, Window()),
    ],
)
def test_others_are_not_tried(tried: dict[str, str], why: str, channels: int, side: int, window: Window) -> None:
    x, weight = sample(channels, side)
    torch.testing.assert_close(convolve(x, weight, None, window), conv2d(x, weight, None, *window))
    assert not tried, why


def test_nor_without_gradients_or_in_mixed_precision(tried: dict[str, str]) -> None:
    x, weight = sample()
    with torch.no_grad():
        convolve(x, weight, None, SAME)
    convolve(x, weight.detach(), None, SAME)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(x, weight, None, SAME).dtype == torch.bfloat16
    assert not tried


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 1), (4, 2)])
def test_depthwise_gradients_are_not_rounded_under_autocast(size: int, stride: int) -> None:
    """Nor is the output, but at its end; biases learn too."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 8, 12, 16), (8, 1, size, size), (8,)))
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    window = Window((stride, stride), ((size - 1) // 2,) * 2, groups=8)
    exact = conv2d(x, weight, bias, *window)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(x, weight, bias, window)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, exact.bfloat16())
    slope = torch.linspace(-1, 1, y.numel()).reshape(y.shape).bfloat16()
    for found, expected in zip(
        torch.autograd.grad(y, inputs, slope), torch.autograd.grad(exact, inputs, slope.float()), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_large_depthwise_layer_learns_in_the_faster_form(tried: dict[str, str], autocast: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(2, 256, 32, 32, generator=generator)
        .bfloat16()
        .float()
        .contiguous(memory_format=torch.channels_last)
    )
    weight = torch.randn(256, 1, 5, 5, generator=generator).requires_grad_()
    window = Window(padding=(2, 2), groups=256)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = convolve(x, weight, None, window)
    assert list(tried.values()) == ["blocks"]
    slope = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)
    expected = torch.autograd.grad(conv2d(x, weight, None, *window), weight, slope.float())
    torch.testing.assert_close(torch.autograd.grad(y, weight, slope), expected, rtol=1e-4, atol=1e-3)


def test_both_forms_of_a_depthwise_trial_agree() -> None:
    window = Window((2, 2), (2, 2), groups=128)
    forms = convolution._depthwise_trial(torch.Size((4, 128, 40, 40)), torch.Size((128, 1, 6, 6)), window)
    plain, blocks = forms["plain"](), forms["blocks"]()
    assert (plain - blocks).abs().max() < 1e-4 * plain.abs().max()
