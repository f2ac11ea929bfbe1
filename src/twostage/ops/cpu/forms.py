"""Layers on the CPU, each in the fastest of its forms (`ops.cpu.choice`).

    any convolution              packed, plain
    1 x 1                        packed product of all pixels, plain product, plain
    3 x 3, stride 1, float32     besides Winograd's, with a batched product or a grouped convolution
    linear layer                 packed, plain

The smallest layers are not tried, for their time is that of the call. The speed of a form depends little on the size of
the map: a trial runs on a part of it, and holds for all maps of about that size. Narrow maps are the exception, for
which packed weights may be laid out anew in every call: each height and width of theirs is tried, for batches of a few
images each number, for the many regions of a head some of them.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import prod
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from twostage.ops.cpu import packed, winograd
from twostage.ops.cpu.choice import Call, choices, state
from twostage.ops.cpu.pointwise import PlainPointwise
from twostage.ops.cpu.winograd import band_of
from twostage.ops.cpu.winograd_grouped import BAND, GroupedWinogradConv
from twostage.ops.plain import Activation, Conv, Linear, PlainConv, PlainLinear, Window

L = TypeVar("L", bound=Callable[..., Tensor])
Trial = Callable[[Collection[str]], Mapping[str, Call]]

_WINOGRAD = "Winograd"
_GROUPED = "grouped Winograd"
_SMALL = 1e6  # operations of a layer from which on its forms are tried: some microseconds
_TRIAL = 3e8  # operations of a trial: a larger input is tried in part
_OUTPUTS = 256  # channels out of a trial at most
_RESULT = 3 << 22  # bytes of a trial's result at most
_TILES = 64  # of Winograd's at least, in a trial
_SIDE = 64  # pixels of a trial along x at least
_IMAGES = 4  # narrow maps up to which each number is tried
NARROW = 16  # pixels of a side below which each size is tried: tiles, and the edges, weigh more
_MAPPED = 1 << 25  # bytes from which on glibc maps fresh memory for each result, at a cost that no part shows
# Bytes of a result in bfloat16 and float16 from which on a plain form is not tried with a summand. It adds and
# activates in passes of its own, which the cache makes look cheap in a trial, on a part of the map and on a whole one.
_CACHED = 1 << 22
_SHAPES = 64  # of inputs whose form a layer remembers
_ROWS = 64  # of a matrix product at least, in a trial


class Forms(Generic[L]):
    """The forms of one layer by name, made when they are needed and kept if they are chosen."""

    def __init__(self, layer: str, makers: Mapping[str, Callable[[], L]]) -> None:
        self.layer = layer
        self.makers = makers
        self.chosen: dict[tuple[object, ...], str] = {}  # by the size of the input, the forms and `choice.state`
        self._kept: dict[str, L] = {}

    @property
    def first(self) -> L:
        """The form that serves best in most cases, for a layer whose forms are not tried."""
        return self[next(iter(self.makers))]

    @property
    def used(self) -> list[str]:
        """The names of the forms that have served."""
        return list(self._kept)

    def fastest(self, size: str, names: Collection[str], trial: Trial) -> str:
        """The form for inputs of this size, one of `names`; `trial` gives calls of these forms on such an input."""
        if len(names) == 1:
            return next(iter(names))
        key = size, *names, *state()
        if key not in self.chosen:
            self.chosen[key] = choices().choose(f"{self.layer}, {size}", names, lambda: trial(names))
        return self.chosen[key]

    def __getitem__(self, name: str) -> L:
        """The form of this name."""
        if name not in self._kept:
            self._kept[name] = self.makers[name]()
        return self._kept[name]


class ChosenConv:
    """A convolution in the fastest of its forms for the shape at hand."""

    def __init__(self, weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window) -> None:
        self.window = window
        self.shape = weight.shape
        self.tiled = winograd.suits(weight, window)
        stride, padding, dilation, groups = window
        name = f"{weight.dtype} convolution {list(weight.shape)} stride {stride} padding {padding}"
        others = f" dilation {dilation} groups {groups}" if (dilation, groups) != ((1, 1), 1) else ""
        self.forms: Forms[Conv] = Forms(name + others, conv_forms(weight, bias, window))
        # By the input's shape, whether there is a summand, and `choice.state`.
        self._names: dict[tuple[object, ...], str] = {}

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """See `Conv`."""
        key = x.shape, add is None, *state()
        name = self._names.get(key)  # one look: another thread may clear them
        if name is None:
            if len(self._names) >= _SHAPES:
                self._names.clear()
            name = self._names[key] = self._choose(x, activation, add)
        return self.forms[name](x, activation, add)

    def _choose(self, x: Tensor, activation: Activation, add: Tensor | None) -> str:
        """The name of the form for such an input."""
        n, _, h, w = x.shape
        pixels = n * h * w // prod(self.window.stride)  # out
        if pixels * 2 * prod(self.shape) <= _SMALL:
            return "plain"
        size = about(pixels)
        if min(h, w) < NARROW:
            size = f"{n} x {h} x {w}" if n <= _IMAGES else f"{size} of {h} x {w}"
        packs = any(name.startswith("packed") for name in self.forms.makers)
        large = packs and pixels * self.shape[0] * x.element_size() > _MAPPED
        size += " large" * large + " with a summand" * (add is not None)
        names = [name for name in self.forms.makers if name != "plain" or not large]
        if packs and add is not None and x.element_size() == 2 and pixels * self.shape[0] * 2 > _CACHED:
            names = [name for name in names if not name.startswith("plain")]
        if not winograd.is_exact():
            names = [name for name in names if name not in (_WINOGRAD, _GROUPED)]
        trial = partial(self._trial, shape=x.shape, dtype=x.dtype, activation=activation, add=add is not None)
        name = self.forms.fastest(size, names, trial)
        if name == _GROUPED:
            # Its speed depends on the very number of tiles: there it is compared with the best of the others.
            names.remove(_GROUPED)
            other = self.forms.fastest(f"{size}, not grouped", names, trial)
            images, rows, across = band_of(x.shape, BAND)
            some = torch.Size((images, x.shape[1], min(h, max(NARROW, 4 * rows)), w))
            name = self.forms.fastest(
                f"{size}, bands of {images} x {rows} x {across} tiles",
                [other, _GROUPED],
                partial(trial, shape=some, whole=True),
            )
        return name

    def _trial(
        self,
        names: Collection[str],
        *,
        shape: torch.Size,
        dtype: torch.dtype,
        activation: Activation,
        add: bool,
        whole: bool = False,
    ) -> dict[str, Callable[[], Tensor]]:
        """Calls of these forms on an input of this shape: of a layer with fewer channels out, on a part, or `whole`."""
        n, c, h, w = shape
        narrow = min(h, w) < NARROW
        weight, bias = _sample(
            self.shape, dtype, outputs=None if whole or narrow or self.window.groups > 1 else _OUTPUTS
        )
        if narrow and not whole and n > _IMAGES:
            pixels = max(_TRIAL / (2 * weight.numel()) * prod(self.window.stride), _TILES * 16)
            n = min(n, max(_IMAGES, int(pixels) // (h * w)))
        elif not (whole or narrow):
            pixels = min(_TRIAL / (2 * weight.numel()), _RESULT / (len(weight) * dtype.itemsize))
            pixels = max(pixels, _TILES * 16) if self.tiled else pixels
            pixels *= prod(self.window.stride)
            w = min(w, max(_SIDE, int(pixels) // NARROW))
            h = min(h, max(NARROW, 4 * -(-int(pixels) // (4 * w))))
            n = min(n, max(1, int(pixels) // (h * w)))
        x = sample(n, h, w, c, dtype=dtype).permute(0, 3, 1, 2)
        out = conv2d(x, weight, bias, *self.window).shape
        forms = Forms("trial", conv_forms(weight, bias, self.window))

        def call(name: str) -> Tensor:
            if not add:
                return forms[name](x, activation)
            zeros = x.new_zeros(out[0], *out[2:], out[1]).permute(0, 3, 1, 2)  # new ones: they are overwritten
            return forms[name](x, activation, zeros)

        return {name: partial(call, name) for name in names}


class ChosenLinear:
    """A linear layer in the fastest of its forms for the number of rows at hand."""

    def __init__(self, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> None:
        self.shape = weight.shape
        self.forms: Forms[Linear] = Forms(f"{weight.dtype} linear {list(weight.shape)}", linear_forms(weight, bias))

    def __call__(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """See `torch.nn.functional.linear`."""
        rows = x.numel() // x.shape[-1]
        if rows * 2 * prod(self.shape) <= _SMALL:
            return self.forms["plain"](x)
        trial = partial(self._trial, rows=rows, dtype=x.dtype)
        return self.forms[self.forms.fastest(about(rows), list(self.forms.makers), trial)](x)

    def _trial(self, names: Collection[str], *, rows: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
        weight, bias = _sample(self.shape, dtype, outputs=_OUTPUTS)
        x = sample(min(rows, max(_ROWS, int(_TRIAL / (2 * weight.numel())))), self.shape[1], dtype=dtype)
        forms = Forms("trial", linear_forms(weight, bias))
        return {name: partial(_called, forms, name, x) for name in names}


def _called(forms: Forms[Linear], name: str, x: Tensor) -> Tensor:
    return forms[name](x)


def _sample(shape: tuple[int, ...], dtype: torch.dtype, *, outputs: int | None) -> tuple[Tensor, Tensor]:
    """Weights and biases of a layer of this shape, with so many channels out at most."""
    shape = (min(shape[0], outputs or shape[0]), *shape[1:])
    return sample(*shape, dtype=dtype), torch.ones(shape[0], dtype=dtype, device="cpu")


def sample(*shape: int, dtype: torch.dtype) -> Tensor:
    """Numbers between -1 and 1 that differ from their neighbours, so that a form which mixes up channels disagrees.

    The values of the image do not enter a trial: NaN would make every form disagree.
    """
    return torch.arange(prod(shape), dtype=torch.float32, device="cpu").mul_(12.9898).sin_().view(shape).to(dtype)


def conv_forms(
    weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window
) -> dict[str, Callable[[], Conv]]:
    """The forms that can serve a convolution on the CPU, by name."""
    if not packed.serves("cpu", weight.dtype):
        plain = PlainConv.of(weight, bias, window)
        return {**_plain_forms(weight, lambda: plain.weight, bias, window), "plain": lambda: plain}
    # The other forms are made of the packed weights: until one of them is chosen, a model holds each weight once.
    if _is_product(weight, window):
        product = packed.PackedPointwise.of(weight, bias, window)
        forms = _plain_forms(weight, lambda: product.weight.to_dense()[:, :, None, None], bias, window)
        return {"packed product": lambda: product, **forms}
    conv = packed.PackedConv.of(weight, bias, window)
    forms = _plain_forms(weight, conv.weight.to_dense, bias, window)
    if winograd.suits(weight, window):
        forms[_GROUPED] = lambda: GroupedWinogradConv.of(conv.weight.to_dense(), bias)
    return {"packed": lambda: conv, **forms}


def _plain_forms(
    weight: Float[Tensor, "d c k l"], again: Callable[[], Tensor], bias: Float[Tensor, " d"] | None, window: Window
) -> dict[str, Callable[[], Conv]]:
    """Those by torch's public operators; `again` gives the weights, which are not kept here."""
    forms: dict[str, Callable[[], Conv]] = {"plain": lambda: PlainConv.of(again(), bias, window)}
    if _is_product(weight, window):
        forms["plain product"] = lambda: PlainPointwise.of(again()[:, :, 0, 0], bias, window)
    if winograd.suits(weight, window):
        forms[_WINOGRAD] = lambda: winograd.WinogradConv.of(again(), bias)
    return forms


def _is_product(weight: Float[Tensor, "d c k l"], window: Window) -> bool:
    return weight.shape[2:] == (1, 1) and window.padding == (0, 0) and window.groups == 1


def linear_forms(weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> dict[str, Callable[[], Linear]]:
    """The forms that can serve a linear layer on the CPU, by name."""
    if not packed.serves("cpu", weight.dtype):
        return {"plain": lambda: PlainLinear(weight, bias)}
    layer = packed.PackedLinear.of(weight, bias)
    return {"packed": lambda: layer, "plain": lambda: PlainLinear(layer.weight.to_dense(), bias)}


def about(count: int) -> str:
    """A number of pixels or rows as a decision distinguishes it."""
    limit = next((limit for limit in (1 << 8, 1 << 12, 1 << 16) if count <= limit), 0)
    return f"up to {limit}" if limit else "more"
