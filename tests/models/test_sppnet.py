"""SPPnet's regions: a pyramid from maps that all regions of an image share."""

import pytest
import torch
from detectors import make_model

from twostage.experiments.small import rcnn_model, sppnet_model
from twostage.models.regions.pooling import RegionFeatures
from twostage.models.sppnet import PyramidRegions, scaled
from twostage.models.two_stage import TwoStage
from twostage.ops.spp import spp


@pytest.fixture(autouse=True)
def _no_gradients(no_gradients: None) -> None:
    """Nothing here is trained."""


def sppnet(size: int, *, five: bool) -> TwoStage:
    config = scaled(size, five=five)
    return make_model("sppnet_tiny", 3, **{"regions.sizes": config.sizes, "regions.region": config.region}).eval()


def pool5(model: TwoStage, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    return model.head.vectors(RegionFeatures(model.backbone(images)), boxes)[0]


def test_sppnet_starts_as_the_same_function_of_the_same_cells_as_rcnn() -> None:
    """The columns of fc6 for the coarser levels are 0 at first."""
    begun = rcnn_model(3).eval()
    model = sppnet_model(begun, 96, five=False).eval()
    image = torch.rand(1, 3, 96, 96)
    (features,) = begun.head.regions.backbone(image)
    whole = torch.tensor([[[0.0, 0, 96, 96]]])  # of 6 x 6 cells one falls away on each side but the first
    pyramid = pool5(model, image, whole)
    torch.testing.assert_close(pyramid, spp(features, whole))
    fc7 = model.head.vectors(RegionFeatures(model.backbone(image)), whole)[1]
    cells = pyramid[:, :, : 128 * 36].unflatten(2, (6, 6, 128)).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(fc7, begun.head.body(cells), atol=1e-5, rtol=1e-4)


def test_of_five_scales_a_region_takes_the_one_nearest_to_its_size() -> None:
    """SPPnet, section 4.1: the scaled region has about 224 x 224 pixels."""
    config = scaled(688, five=True)
    assert config.sizes == (480, 576, 688, 864, 1200)
    sides = torch.tensor([100.0, 224.0, 300.0, 400.0])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), sides, sides], dim=1)
    chosen = [config.sizes[k] for k in PyramidRegions(config, 16).choose(boxes, 688)]
    for side, size in zip(sides.tolist(), chosen, strict=True):
        nearest = min(config.sizes, key=lambda s, side=side: abs(side * s / 688 - 224))
        assert size == nearest
    assert chosen[1] == 688


def test_a_pyramid_of_several_scales_pools_each_region_from_its_own_map() -> None:
    model = sppnet(96, five=True)
    images = torch.rand(2, 3, 96, 128)
    boxes = torch.tensor([[5.0, 5, 20, 20], [0, 0, 120, 90], [30, 20, 61, 51]]).repeat(2, 1, 1)
    found = pool5(model, images, boxes)
    _, *maps = model.backbone(images)
    regions = model.head.regions
    choice = regions.choose(boxes, 96)
    assert len(set(choice.flatten().tolist())) > 1
    for i in range(2):
        for row, box, k in zip(found[i], boxes[i], choice[i], strict=True):
            alone = spp(maps[k][i : i + 1], box[None, None] * regions.config.sizes[k] / 96)[0, 0]
            torch.testing.assert_close(row, alone)


def test_regions_of_a_device_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere every region is pooled at every size, so that no shape depends on the choice."""
    model = sppnet(96, five=True)
    images = torch.rand(1, 3, 96, 128)
    boxes = torch.tensor([[[5.0, 5, 20, 20], [0, 0, 120, 90], [30, 20, 61, 51]]])
    expected = pool5(model, images, boxes)
    monkeypatch.setattr("twostage.models.sppnet.ON_HOST", ())
    torch.testing.assert_close(pool5(model, images, boxes), expected)
