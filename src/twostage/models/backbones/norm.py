"""Normalisation layers of backbones, and how a convolution meets them."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine parameters are fixed (ResNet fine-tuning, He et al. 2016).

    Buffers carry torchvision's names, so that ImageNet files load.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def scale_and_shift(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """The same normalisation as one multiplication and one addition."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalise with the stored statistics."""
        scale, shift = self.scale_and_shift()
        return x * scale[:, None, None] + shift[:, None, None]


def norm_layer(kind: str, eps: float) -> Norm:
    """The constructor of a normalisation layer for so many channels: `frozen`, `batch`, or `group` (Wu and He 2018)."""
    if kind == "frozen":
        return partial(FrozenBatchNorm, eps=eps)
    if kind == "batch":
        return partial(nn.BatchNorm2d, eps=eps)
    return lambda channels: nn.GroupNorm(min(32, channels // 8), channels, eps=eps)


def conv_norm(x: Float[Tensor, "n c h w"], conv: nn.Conv2d, norm: nn.Module) -> Float[Tensor, "n d _ _"]:
    """Convolve, then normalise.

    A frozen normalisation scales the convolution's weights instead of its output, in training too: the gradient still
    reaches the weights, and a pass over the feature map is saved forward and backward.
    """
    if isinstance(norm, FrozenBatchNorm):
        scale, shift = norm.scale_and_shift()
        weight = conv.weight * scale[:, None, None, None]
        return conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
    return norm(conv(x))
