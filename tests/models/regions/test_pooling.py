import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align, roi_pool

from twostage.models.regions import pooling
from twostage.models.regions.pooling import AlignedRegions, PooledRegions, RegionFeatures, RoIAlignConfig, RoIPoolConfig

STRIDES = (4, 8, 16, 32)
CANVAS = (128, 160)


def maps(strides: tuple[int, ...] = STRIDES) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, 6, CANVAS[0] // s, CANVAS[1] // s, generator=g) for s in strides]


def boxes(count: int = 40) -> Tensor:
    g = torch.Generator().manual_seed(1)
    corner = torch.rand(2, count, 2, generator=g) * 100
    return torch.cat([corner, corner + torch.rand(2, count, 2, generator=g) ** 3 * 150 + 1], dim=2)


@pytest.mark.parametrize("ratio", [0, 2])
def test_pyramid_equals_torchvision(ratio: int) -> None:
    """The level of each box too; the RPN's extra map is not read."""
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, ratio, canonical_scale=64)
    named = {str(i): m for i, m in enumerate(maps())}
    expected = pooler(named, [*boxes()], [CANVAS] * 2).unflatten(0, (2, -1))
    ours = AlignedRegions(RoIAlignConfig(canonical_size=64, sampling_ratio=ratio, max_samples=None), STRIDES)
    torch.testing.assert_close(ours(RegionFeatures(maps((*STRIDES, 64))), boxes()), expected, rtol=1e-4, atol=1e-4)


def test_single_map_aligned() -> None:
    """ResNet's C4: 14 bins, aligned, as many samples as a bin has cells, one map."""
    config = RoIAlignConfig(14, sampling_ratio=0, aligned=True)
    (features,) = maps((16,))
    expected = roi_align(features, [*boxes()], 14, 1 / 16, 0, aligned=True).unflatten(0, (2, -1))
    pooled = AlignedRegions(config, (16,))(RegionFeatures([features]), boxes())
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def test_the_limit_of_samples_is_above_what_c4_needs_at_its_own_size() -> None:
    """1333 px at stride 16 are 84 cells, 6 for each of 14 bins."""
    assert RoIAlignConfig().max_samples >= -(-1333 // 16 // 14)


def test_without_a_limit_of_samples_devices_of_fixed_shapes_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported detectors have none: RoIAlign's operator refuses that on a GPU."""
    limits = []

    def align(features: list[Tensor], boxes: Tensor, *_: Tensor, max_samples: int | None, **_options: object) -> Tensor:
        limits.append(max_samples)
        return boxes.new_zeros(*boxes.shape[:2], 6, 7, 7)

    monkeypatch.setattr(pooling, "roi_align", align)
    regions = AlignedRegions(RoIAlignConfig(sampling_ratio=0, max_samples=None), STRIDES)
    for device in ("cpu", "meta"):
        regions(RegionFeatures([m.to(device) for m in maps()]), boxes().to(device))
    assert limits == [None, RoIAlignConfig().max_samples]


def test_roi_pool_equals_torchvision() -> None:
    (features,) = maps((16,))
    expected = roi_pool(features, [*boxes()], 7, 1 / 16).unflatten(0, (2, -1))
    assert torch.equal(PooledRegions(RoIPoolConfig(), 16)(RegionFeatures([features]), boxes()), expected)
