"""Normalisation layers, and convolutions followed by normalisation and activation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twostage.errors import UsageError
from twostage.models.component import Count, NotNegative, short
from twostage.models.fused import FusedConv
from twostage.ops.convolution import convolve
from twostage.ops.plain import Activation, Window, activate

Norm = Callable[[int], nn.Module]
"""The constructor of a normalisation layer for so many channels."""


@dataclass(frozen=True)
class NormConfig:
    """FrozenBatchNorm, BatchNorm, GroupNorm (Wu and He 2018), or LayerNorm over the channels of each position.

    GroupNorm has so many `groups`, 32 in the paper; None: at most 32 of at least 8 channels.
    """

    kind: Literal["frozen", "batch", "group", "layer"] = short("frozen", "norm")
    eps: NotNegative = short(1e-5, "norm_eps")  # torchvision's COCO_V1 ResNet-50 has 0.0
    groups: Count | None = None


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


class LayerNorm(nn.LayerNorm):
    """Normalises the channels of each position (Ba et al. 2016), as the heads of ViTDet do (Li et al. 2022, 4)."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The normalised map."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupNorm(nn.GroupNorm):
    """torch's, whose result in channels-last on a CPU is off by 1e-3 on a large map (it takes the variance as a
    difference of two large sums): without gradients the mean is subtracted first."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The normalised map."""
        as_torch = torch.is_grad_enabled() or input.device.type != "cpu" or input.dtype.itemsize < 4
        if as_torch or input.is_contiguous():
            return super().forward(input)
        centred = input - self._of_groups(input.mean((2, 3)))[:, :, None, None]
        variance = self._of_groups(centred.square().mean((2, 3)))
        scale = (variance + self.eps).rsqrt() * self.weight
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, :, None, None])

    def _of_groups(self, values: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The mean of its group for each channel."""
        groups = values.unflatten(1, (self.num_groups, -1))
        return groups.mean(dim=2, keepdim=True).expand_as(groups).flatten(1)


class Conv2d(nn.Conv2d):
    """torch's, in training on a CPU in the faster of two forms (`ops.convolution`)."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _ _"]:
        """The convolution."""
        return convolve(input, self.weight, self.bias, window_of(self))


def window_of(conv: nn.Conv2d) -> Window:
    """The geometry of a layer."""
    stride, padding, dilation = (cast(tuple[int, int], v) for v in (conv.stride, conv.padding, conv.dilation))
    return Window(stride, padding, dilation, conv.groups)


class ConvNorm(nn.Sequential):
    """A convolution, then its normalisation, if there is one, and an activation; see `conv_norm`."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, activation: Activation = "none") -> None:
        super().__init__(conv, *([] if norm is None else [norm]))
        self.activation: Activation = activation

    def forward(
        self, x: Float[Tensor, "n c h w"], add: Float[Tensor, "n d i j"] | None = None
    ) -> Float[Tensor, "n d i j"]:
        """The activated sum; `add` may be overwritten."""
        conv, *norm = self
        return conv_norm(x, conv, norm[0] if norm else None, self.activation, add)


def conv_tower(inputs: int, width: int, count: int, norm: Norm | None = None, *, bias: bool) -> nn.Sequential:
    """So many 3 x 3 convolutions, each with its normalisation, if there is one, and ReLU."""
    channels = [inputs, *[width] * count]
    return nn.Sequential(
        *(
            ConvNorm(Conv2d(c, width, 3, padding=1, bias=bias), None if norm is None else norm(width), "relu")
            for c in channels[:count]
        )
    )


def init_convs(module: nn.Module) -> None:
    """Initialises every convolution as He et al. 2015 do for ReLU, fan out; biases are 0."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def norm_layer(config: NormConfig) -> Norm:
    """The constructor of such layers. It raises UsageError for a number of groups that does not divide the channels."""
    if config.kind == "frozen":
        return partial(FrozenBatchNorm, eps=config.eps)
    if config.kind == "batch":
        return partial(nn.BatchNorm2d, eps=config.eps)
    if config.kind == "layer":
        return partial(LayerNorm, eps=config.eps)
    return partial(_group_norm, config)


def _group_norm(config: NormConfig, channels: int) -> GroupNorm:
    groups = config.groups or _groups(channels)
    if channels % groups:
        raise UsageError(
            f"norm.groups is {groups}, which does not divide the {channels} channels of a layer: give a number that "
            "divides those of all layers, or none, for at most 32 groups of at least 8 channels."
        )
    return GroupNorm(groups, channels, eps=config.eps)


def _groups(channels: int) -> int:
    """At most 32 groups of at least 8 channels, as many as divide them evenly."""
    return max(groups for groups in range(1, max(1, min(32, channels // 8)) + 1) if channels % groups == 0)


def conv_norm(
    x: Float[Tensor, "n c h w"],
    conv: nn.Module,
    norm: nn.Module | None = None,
    activation: Activation = "none",
    add: Float[Tensor, "n d i j"] | None = None,
) -> Float[Tensor, "n d i j"]:
    """Convolve, normalise, add a second summand, activate. A prepared model overwrites `add`, and does all at once.

    A frozen normalisation scales the convolution's weights instead of its output, in training too: the gradient still
    reaches the weights, and a pass over the feature map is saved forward and backward.
    """
    if isinstance(conv, FusedConv) and norm is None:
        return conv(x, activation, add)
    hooked = any(is_hooked(module) for module in (conv, norm) if module is not None)
    if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm) and not hooked:
        scale, shift = norm.scale_and_shift()
        weight = conv.weight * scale[:, None, None, None]
        y = convolve(x, weight, shift, window_of(conv))
    else:
        y = conv(x) if norm is None else norm(conv(x))
        # What a hook has kept stays as it is; the view that a backward hook returns may not be changed in place at all.
        y = y.clone() if hooked else y
    return activate(y if add is None else y + add, activation)


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks of its own look at a module, which then has to be called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
