"""Convolutions in training: on a CPU in the faster of two forms, with their gradients.

oneDNN's gradient in the kernels takes several times as long as the convolution on large maps, and Winograd's minimal
filtering (`ops.cpu.winograd_gradient`) less than half. Which is faster is found by trying both on this machine once
(`ops.cpu.choice`), for layers of at least 96 channels: with fewer the transforms cost as much as is saved. Winograd's
form is differentiable once, which a loss needs. Under `torch.func` and `torch.compile` torch's own operator computes.

Depthwise convolutions learn their kernels by oneDNN in float32, under autocast too, since in bfloat16 it takes several
times as long; larger kernels and those with a stride in blocks of 3 x 3, where a trial is faster
(`ops.cpu.depthwise_gradient`).
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import conv2d

from twostage.ops.cpu.choice import Call, choices
from twostage.ops.cpu.depthwise_gradient import depthwise_conv
from twostage.ops.cpu.forms import NARROW, about, sample
from twostage.ops.cpu.winograd import is_exact, suits
from twostage.ops.cpu.winograd_gradient import winograd_conv
from twostage.ops.plain import Window

_CHANNELS = 96
_LARGE = 1e8  # operations from which on both forms are tried
_TRIAL = 6e8  # operations of a trial, without its gradients


def convolve(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d _ k l"], bias: Float[Tensor, " d"] | None, window: Window
) -> Float[Tensor, "n d i j"]:
    """`torch.nn.functional.conv2d`. Differentiable once where it computes by Winograd's filtering."""
    if _learns_depthwise(x, weight, window):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            if _depthwise_form(x, weight, window) == "blocks":
                return depthwise_conv(x.to(dtype), weight, bias, window)
            return conv2d(x.float(), weight, bias, *window).to(dtype)
    if _is_candidate(x, weight, window) and _form(x, weight) == "Winograd":
        return winograd_conv(x, weight, bias)
    return conv2d(x, weight, bias, *window)


def _learns_depthwise(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether it is depthwise, with kernels that are trained on a CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and weight.dtype == torch.float32
        and torch.is_grad_enabled()
        and weight.requires_grad
        and window.groups == weight.shape[0] > 1
        and weight.shape[1] == 1
        and window.dilation == (1, 1)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _depthwise_form(x: Tensor, weight: Tensor, window: Window) -> str:
    n, _, h, w = x.shape
    is_block = weight.shape[2:] == (3, 3) and window.stride == (1, 1)
    if is_block or 2 * weight.numel() * n * h * w <= _LARGE / 10:
        return "plain"
    size = f"{about(n * h * w)} pixels" + (f" of {h} x {w}" if min(h, w) < NARROW else "")
    layer = f"training depthwise convolution {list(weight.shape)} stride {window.stride}, {size}"
    return choices().choose(
        layer, ["plain", "blocks"], partial(_depthwise_trial, x.shape, weight.shape, window), lasting=True
    )


def _depthwise_trial(shape: torch.Size, kernels: torch.Size, window: Window) -> dict[str, Call]:
    """The gradient in the kernels in both forms, of some images."""
    n, c, h, w = shape
    n = min(n, max(1, int(_TRIAL / 4 / (2 * kernels.numel() * h * w))))
    x = sample(n, h, w, c, dtype=torch.float32).permute(0, 3, 1, 2)
    weight = sample(*kernels, dtype=torch.float32).requires_grad_()

    def call(form: Callable[..., Tensor]) -> Tensor:
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):
            y = form(x, weight, None)
            return torch.autograd.grad(y, weight, y.detach())[0]

    def plain(x: Tensor, weight: Tensor, bias: None) -> Tensor:
        return conv2d(x, weight, bias, *window)

    def blocks(x: Tensor, weight: Tensor, bias: None) -> Tensor:
        return depthwise_conv(x, weight, bias, window)

    return {"plain": partial(call, plain), "blocks": partial(call, blocks)}


def _is_candidate(x: Tensor, weight: Tensor, window: Window) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and suits(weight, window)
        and is_exact()
        and min(weight.shape[:2]) >= _CHANNELS
        and 2 * weight.numel() * x.shape[0] * x.shape[2] * x.shape[3] >= _LARGE
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _form(x: Tensor, weight: Tensor) -> str:
    n, _, h, w = x.shape
    needs = " and ".join(name for name, tensor in (("input", x), ("kernels", weight)) if tensor.requires_grad)
    # Regions of a head differ from maps of as many pixels: edges weigh more.
    size = f"{about(n * h * w)} pixels" + (f" of {h} x {w}" if min(h, w) < NARROW else "")
    layer = f"training convolution {list(weight.shape)}, {size}, gradient in {needs}"
    trial = partial(_trial, x.shape, weight.shape, x.requires_grad, weight.requires_grad)
    # Kept even if other work has disturbed it: a resumed run computes as the one that it continues.
    return choices().choose(layer, ["plain", "Winograd"], trial, lasting=True)


def _trial(shape: torch.Size, kernels: torch.Size, needs_x: bool, needs_weight: bool) -> dict[str, Call]:
    """Both forms, forward and backward, on a part of such an input."""
    n, c, h, w = shape
    weight = sample(*kernels, dtype=torch.float32).requires_grad_(needs_weight)
    pixels = _TRIAL / (2 * weight.numel())
    w = min(w, 160)
    h = min(h, max(16, int(pixels) // w))
    n = min(n, max(1, int(pixels) // (h * w)))
    x = sample(n, h, w, c, dtype=torch.float32).permute(0, 3, 1, 2).requires_grad_(needs_x)
    wanted = [tensor for tensor in (weight, x) if tensor.requires_grad]
    plain = partial(conv2d, padding=1)

    def call(form: Callable[..., Tensor]) -> Tensor:
        # Hooks of the model's own graph, as of `torch.utils.checkpoint`, have no part in it.
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):
            y = form(x, weight, None)
            return torch.autograd.grad(y, wanted, y.detach())[0]

    return {"plain": partial(call, plain), "Winograd": partial(call, winograd_conv)}


def _same(tensor: Tensor) -> Tensor:
    return tensor
