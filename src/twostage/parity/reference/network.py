"""The layers: ResNet and its pyramid (He et al. 2016; Lin et al. 2017)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
Names = Callable[[str], str]
GROUPS = 32  # of GroupNorm


def conv(x: Tensor, state: State, name: str, **how: int) -> Tensor:
    """A convolution with its bias, where it has one."""
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **how)


def linear(x: Tensor, state: State, name: str) -> Tensor:
    """A linear layer."""
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(x: Tensor, state: State, name: str) -> Tensor:
    """Batch normalisation with fixed statistics, GroupNorm where there are none, nothing without weights."""
    if f"{name}.weight" not in state:
        return x
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    if f"{name}.running_mean" not in state:
        return F.group_norm(x, GROUPS, weight, bias)
    return F.batch_norm(x, state[f"{name}.running_mean"], state[f"{name}.running_var"], weight, bias)


def resnet(
    x: Tensor, state: State, names: Names, *, stride_in_1x1: bool, last: int = 5, dilated: bool = False
) -> list[Tensor]:
    """The maps of the stages from the second on. `names` gives the project's names of `stem`, `stem_norm`, `2.0.conv1`,
    `2.0.norm1`, `2.0.short` and `2.0.short_norm`."""
    x = conv(x, state, names("stem"), stride=2, padding=3)
    x = F.max_pool2d(norm(x, state, names("stem_norm")).relu(), 3, 2, 1)
    maps = []
    for stage in range(2, last + 1):
        stride = 1 if stage == 2 or (dilated and stage == 5) else 2
        dilation = 2 if dilated and stage == 5 else 1
        x = residual_stage(x, state, names, stage, stride, stride_in_1x1=stride_in_1x1, dilation=dilation)
        maps.append(x)
    return maps


def residual_stage(
    x: Tensor, state: State, names: Names, stage: int, stride: int, *, stride_in_1x1: bool, dilation: int = 1
) -> Tensor:
    """One stage of basic blocks or of bottlenecks, those of ResNeXt with groups."""
    block = 0
    while f"{names(f'{stage}.{block}.conv1')}.weight" in state:
        at, step = f"{stage}.{block}", stride if block == 0 else 1
        y = x
        for k in (1, 2, 3):
            name = names(f"{at}.conv{k}")
            if f"{name}.weight" not in state:
                break
            if k > 1:
                y = y.relu()
            weight, bottleneck = state[f"{name}.weight"], f"{names(f'{at}.conv3')}.weight" in state
            wide = weight.shape[2] == 3
            strided = k == (1 if stride_in_1x1 or not bottleneck else 2)
            y = F.conv2d(
                y,
                weight,
                stride=step if strided else 1,
                padding=dilation if wide else 0,
                dilation=dilation if wide else 1,
                groups=y.shape[1] // weight.shape[1],
            )
            y = norm(y, state, names(f"{at}.norm{k}"))
        short = names(f"{at}.short")
        if f"{short}.weight" in state:
            x = norm(F.conv2d(x, state[f"{short}.weight"], stride=step), state, names(f"{at}.short_norm"))
        x = (x + y).relu()
        block += 1
    return x


def fpn(
    maps: Sequence[Tensor],
    state: State,
    lateral: Sequence[str],
    output: Sequence[str],
    norm_of: Callable[[str], str] = "{}.norm".format,
) -> list[Tensor]:
    """A pyramid from lateral and output convolutions, named from the finest level on."""

    def normed(x: Tensor, name: str, **how: int) -> Tensor:
        return norm(conv(x, state, name, **how), state, norm_of(name))

    tops = [normed(maps[-1], lateral[-1])]
    for x, name in zip(maps[-2::-1], lateral[-2::-1], strict=True):
        tops.append(normed(x, name) + F.interpolate(tops[-1], size=x.shape[2:], mode="nearest"))
    return [normed(x, name, padding=1) for x, name in zip(tops[::-1], output, strict=True)]


def masks(x: Tensor, labels: Tensor, state: State, up: str, last: str) -> Tensor:
    """The probabilities of each region's mask for its class, from the features of its head."""
    x = F.conv_transpose2d(x, state[f"{up}.weight"], state[f"{up}.bias"], stride=2).relu()
    x = conv(x, state, last)
    return x[torch.arange(len(labels)), labels if x.shape[1] > 1 else 0].sigmoid()
