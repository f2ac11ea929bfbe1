from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops import feature_pyramid_network as torchvisions

from twostage.models.backbones.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from twostage.models.backbones.norm import NormConfig, norm_layer


class Given(nn.Module):
    """A body with fixed maps."""

    strides = (4, 8, 16)

    def __init__(self, channels: tuple[int, ...], maps: list[Tensor]) -> None:
        super().__init__()
        self.channels = channels
        self.maps = maps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.maps)

    def get_stages(self) -> list[list[nn.Module]]:
        return [[self]]

    def parts(self) -> list[list[nn.Module]]:
        return [[self]]


def maps(channels: tuple[int, ...], shapes: list[tuple[int, int]]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, *shape, generator=g) for c, shape in zip(channels, shapes, strict=True)]


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize(
    "shapes", [[(24, 32), (12, 16), (6, 8)], [(25, 33), (13, 17), (7, 9)]], ids=["even", "odd maps"]
)
def test_equal_to_torchvision(norm: str | None, extra: bool, shapes: list[tuple[int, int]]) -> None:
    channels = (8, 12, 20)
    given = maps(channels, shapes)
    theirs = FeaturePyramidNetwork(
        list(channels),
        16,
        extra_blocks=torchvisions.LastLevelMaxPool() if extra else None,
        norm_layer=nn.BatchNorm2d if norm else None,
    ).eval()
    ours = FPN(
        Given(channels, given),
        16,
        norm_layer(NormConfig(norm)) if norm else None,
        extra=LastLevelMaxPool() if extra else None,
    ).eval()
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        if other.is_floating_point():
            other.copy_(torch.rand(other.shape) - 0.2 * (other.ndim > 1))
        mine.copy_(other)
    expected = theirs(OrderedDict((str(i), m) for i, m in enumerate(given)))
    levels = ours(torch.empty(2, 3, 96, 128))
    assert len(levels) == len(ours.strides) == len(ours.channels)
    for mine, other in zip(levels, expected.values(), strict=True):
        torch.testing.assert_close(mine, other)


def test_two_more_levels_equal_torchvisions() -> None:
    channels, shapes = (8, 12, 20), [(24, 32), (12, 16), (7, 8)]
    theirs = FeaturePyramidNetwork(list(channels), 16, extra_blocks=torchvisions.LastLevelP6P7(16, 16)).eval()
    given = maps(channels, shapes)
    ours = FPN(Given(channels, given), 16, extra=LastLevelP6P7(16, 16)).eval()
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        mine.copy_(other)
    expected = theirs(OrderedDict((str(i), m) for i, m in enumerate(given)))
    assert ours.strides == (4, 8, 16, 32, 64)
    for mine, other in zip(ours(torch.empty(2, 3, 96, 128)), expected.values(), strict=True):
        torch.testing.assert_close(mine, other)


def test_strides_and_parts_are_the_bodys_and_one_more() -> None:
    body = Given((8, 8, 8), [])
    assert FPN(body, 16, extra=LastLevelMaxPool()).strides == (4, 8, 16, 32)
    assert FPN(body, 16).strides == (4, 8, 16)
    assert FPN(body, 16).get_stages() == body.get_stages()
