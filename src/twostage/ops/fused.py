"""The quickest form of a convolution or a linear layer on the device of its weights."""

from jaxtyping import Float
from torch import Tensor

from twostage.ops.activation import Activation
from twostage.ops.cpu import packed, winograd
from twostage.ops.cpu.memory import release_freed_memory
from twostage.ops.cpu.packed import Conv, PackedConv, PackedLinear, PackedPointwise, PlainConv, PlainLinear, Window

_LARGE = 4096  # pixels of all maps together from which on its gain is worth the memory


class BySize:
    """A 3 x 3 convolution, directly for small maps and by Winograd's minimal filtering for large ones.

    Its transformed kernels take four times the memory: they are made when the first large map comes.
    """

    def __init__(self, weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, " d"] | None, window: Window) -> None:
        self.direct = PackedConv.of(weight, bias, window)
        self._filtered: winograd.WinogradConv | None = None

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d h w"] | None = None
    ) -> Float[Tensor, "n d h w"]:
        """See `packed.Conv`."""
        if x.shape[0] * x.shape[2] * x.shape[3] < _LARGE:
            return self.direct(x, activation, add)
        if self._filtered is None:
            self._filtered = winograd.WinogradConv.of(self.direct.weight.to_dense(), self.direct.bias)
            release_freed_memory()
        return self._filtered(x, activation, add)


def best_conv(weight: Float[Tensor, "d c k l"], bias: Float[Tensor, " d"] | None, window: Window) -> Conv:
    """The quickest way to do a convolution, with its weights in the form that it takes."""
    if not packed.serves(weight.device.type, weight.dtype):
        return PlainConv.of(weight, bias, window)
    if winograd.suits(weight, window):
        return BySize(weight, bias, window)
    if weight.shape[2:] == (1, 1) and window.padding == (0, 0) and window.groups == 1:
        return PackedPointwise.of(weight, bias, window)
    return PackedConv.of(weight, bias, window)


def best_linear(weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> PlainLinear | PackedLinear:
    """The quickest way to do a linear layer, with its weights in the form that it takes."""
    if packed.serves(weight.device.type, weight.dtype):
        return PackedLinear.of(weight, bias)
    return PlainLinear(weight, bias)
