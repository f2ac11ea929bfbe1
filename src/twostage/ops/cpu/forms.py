"""Layers on the CPU, each in the fastest of its forms (`ops.cpu.choice`).

    any convolution              packed, plain
    1 x 1                        product (of all pixels, packed), plain product, plain
    3 x 3, stride 1, float32     besides Winograd's: by a batched product, by a grouped convolution
    linear layer                 packed, plain

The first form serves without a trial; small layers are not tried, for their time is that of the call.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.ops.cpu import packed, winograd
from twostage.ops.cpu.choice import bucket, choices
from twostage.ops.cpu.memory import release_freed_memory
from twostage.ops.plain import Activation, Conv, Linear, PlainConv, PlainLinear, PlainPointwise, Window

L = TypeVar("L", bound=Callable[..., Tensor])

_SMALL = 1e8  # operations of a layer from which on its forms are tried: some tenths of a millisecond
_TRIAL = 1e9  # operations of a trial: a larger input is tried in part
_ROWS = 128  # of a matrix product at least, in a trial


class Forms(Generic[L]):
    """The forms of one layer by name, made when they are needed and kept if they are chosen."""

    def __init__(self, layer: str, makers: Mapping[str, Callable[[], L]]) -> None:
        self.layer = layer
        self.makers = makers
        self.names = list(makers)
        self.chosen: dict[str, str] = {}  # by the sizes of the input
        self._kept: dict[str, L] = {}

    @property
    def first(self) -> L:
        """The form that serves without a trial."""
        return self._of(self.names[0])

    def fastest(self, sizes: str, call: Callable[[L], Tensor]) -> L:
        """The form for inputs of these sizes; `call` runs a form on such an input, or on a part of it."""
        if sizes not in self.chosen:
            made = dict(self._kept)

            def run(name: str) -> Tensor:
                if name not in made:
                    made[name] = self.makers[name]()
                return call(made[name])

            self.chosen[sizes] = choices().choose(
                f"{self.layer} {sizes}", {name: partial(run, name) for name in self.names}
            )
            self._kept = {name: made[name] for name in (self.names[0], *self.chosen.values()) if name in made}
            made.clear()
            release_freed_memory()
        return self._of(self.chosen[sizes])

    def _of(self, name: str) -> L:
        if name not in self._kept:
            self._kept[name] = self.makers[name]()
        return self._kept[name]


class ChosenConv:
    """A convolution in the fastest of its forms for the shape at hand."""

    def __init__(self, weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window) -> None:
        self.window = window
        self.kernel = weight.shape[2:]
        self.operations = 2 * weight.numel()  # per pixel of the output
        geometry = "x".join(map(str, weight.shape))
        layer = f"conv {weight.dtype} {geometry} {window.stride} {window.padding} {window.dilation} {window.groups}"
        self.forms: Forms[Conv] = Forms(layer, conv_forms(weight, bias, window))

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """See `Conv`."""
        stride = prod(self.window.stride)
        if x.shape[0] * x.shape[2] * x.shape[3] * self.operations <= _SMALL * stride:
            return self.forms.first(x, activation, add)
        sizes = bucket((len(x), *x.shape[2:])) + activation * (activation != "none") + "+" * (add is not None)
        form = self.forms.fastest(sizes, lambda form: form(*self._part(x, activation, add)))
        return form(x, activation, add)

    def _part(self, x: Tensor, activation: Activation, add: Tensor | None) -> tuple[Tensor, Activation, Tensor | None]:
        """Some images, or the upper part of one, for a trial. The summand is a copy: it may be overwritten."""
        pixels = _TRIAL * prod(self.window.stride) / self.operations
        n, _, h, w = x.shape
        images = min(n, max(1, int(pixels / (h * w))))
        # Whole rows of Winograd's tiles; at least the kernel's reach.
        rows = min(h, 4 * max(1, self.window.dilation[0] * self.kernel[0] // 4 + 1, round(pixels / (4 * w))))
        part = x[:images, :, :rows]
        if add is not None:
            reach = self.window.dilation[0] * (self.kernel[0] - 1) + 1
            above = (part.shape[2] + 2 * self.window.padding[0] - reach) // self.window.stride[0] + 1
            add = add[:images, :, :above].clone(memory_format=torch.channels_last)
        return part, activation, add


class ChosenLinear:
    """A linear layer in the fastest of its forms for the number of rows at hand."""

    def __init__(self, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> None:
        self.operations = 2 * weight.numel()  # per row
        layer = f"linear {weight.dtype} {weight.shape[0]}x{weight.shape[1]}"
        self.forms: Forms[Linear] = Forms(layer, linear_forms(weight, bias))

    def __call__(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.functional.linear`."""
        rows = x.numel() // x.shape[-1]
        if rows * self.operations <= _SMALL:
            return self.forms.first(x)
        some = max(_ROWS, int(_TRIAL / self.operations))
        form = self.forms.fastest(bucket((rows,)), lambda form: form(x.reshape(rows, -1)[:some]))
        return form(x)


def conv_forms(
    weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window
) -> dict[str, Callable[[], Conv]]:
    """The forms that can serve a convolution on the CPU, by name."""
    if not packed.serves("cpu", weight.dtype):
        plain = PlainConv.of(weight, bias, window)
        return {"plain": lambda: plain, **_plain_forms(weight, lambda: plain.weight, bias, window)}
    # The other forms are made of the packed weights, so that a model holds each weight once.
    if _is_product(weight, window):
        product = packed.PackedPointwise.of(weight, bias, window)
        forms = _plain_forms(weight, lambda: product.weight.to_dense()[:, :, None, None], bias, window)
        return {"product": lambda: product, **forms}
    conv = packed.PackedConv.of(weight, bias, window)
    forms = _plain_forms(weight, conv.weight.to_dense, bias, window)
    if winograd.suits(weight, window):
        grouped = winograd.GroupedProduct.of
        forms["Winograd, grouped"] = lambda: winograd.WinogradConv(grouped(conv.weight.to_dense(), bias))
    return {"packed": lambda: conv, **forms}


def _plain_forms(
    weight: Float[Tensor, "d c k l"], again: Callable[[], Tensor], bias: Float[Tensor, " d"] | None, window: Window
) -> dict[str, Callable[[], Conv]]:
    """Those by torch's public operators; `again` gives the weights, which are not kept here."""
    forms: dict[str, Callable[[], Conv]] = {"plain": lambda: PlainConv.of(again(), bias, window)}
    if _is_product(weight, window):
        forms["plain product"] = lambda: PlainPointwise(again()[:, :, 0, 0], bias, window.stride)
    if winograd.suits(weight, window):
        forms["Winograd, batched"] = lambda: winograd.WinogradConv(winograd.BatchedProduct.of(again(), bias))
    return forms


def _is_product(weight: Float[Tensor, "d c k l"], window: Window) -> bool:
    return weight.shape[2:] == (1, 1) and window.padding == (0, 0) and window.groups == 1


def linear_forms(weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> dict[str, Callable[[], Linear]]:
    """The forms that can serve a linear layer on the CPU, by name."""
    if not packed.serves("cpu", weight.dtype):
        return {"plain": lambda: PlainLinear(weight, bias)}
    layer = packed.PackedLinear.of(weight, bias)
    return {"packed": lambda: layer, "plain": lambda: PlainLinear(layer.weight.to_dense(), bias)}
