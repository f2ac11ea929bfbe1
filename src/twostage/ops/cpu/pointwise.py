"""A 1 x 1 convolution as torch's matrix product, computed in parts that stay in the cache, into kept memory."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.ops.cpu.memory import empty
from twostage.ops.plain import Activation, Window, activate

_BYTES = 1 << 22  # of a part of the result


class PlainPointwise(NamedTuple):
    """A 1 x 1 convolution without padding and groups, by torch's public operators.

    A summand takes the product in place, and the activation follows while the part is in the cache.
    """

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " d"] | None
    stride: tuple[int, int]

    @classmethod
    def of(cls, weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None, window: Window) -> "PlainPointwise":
        """Keep the weights as they are."""
        return cls(weight.t(), bias, window.stride)

    def __call__(
        self, x: Float[Tensor, "n c h w"], activation: Activation = "none", add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """See `Conv`; the result takes the memory of `add`."""
        pixels = x.permute(0, 2, 3, 1)[:, :: self.stride[0], :: self.stride[1]]
        d = self.weight.shape[1]
        shape, rows = (*pixels.shape[:3], d), pixels.reshape(-1, len(self.weight))
        out = empty((len(rows), d), x.dtype) if add is None else add.permute(0, 2, 3, 1).reshape(len(rows), d)
        step = max(1, _BYTES // (d * x.element_size()))
        for some, part in zip(rows.split(step), out.split(step), strict=True):
            if add is not None:
                part.addmm_(some, self.weight)
            elif self.bias is None:
                torch.mm(some, self.weight, out=part)
            else:
                torch.addmm(self.bias, some, self.weight, out=part)
            if add is not None and self.bias is not None:
                part.add_(self.bias)
            activate(part, activation)
        return out.view(shape).permute(0, 3, 1, 2)
