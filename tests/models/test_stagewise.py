"""Windows, pyramids, and detections from hyperplanes: R-CNN's and SPPnet's networks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.ops import nms as torchvisions_nms

from twostage.experiments.small import pyramid_net, stagewise, window_net
from twostage.models.stagewise.nets import PyramidNet, WindowNet
from twostage.models.stagewise.warp import warp
from twostage.models.zoo import build
from twostage.ops.deltas import decode
from twostage.ops.spp import spp

BOXES = torch.tensor([[10.0, 12, 40, 60], [0, 0, 90, 70], [50, 30, 58, 36], [70, 50, 90, 70]])


@pytest.fixture(autouse=True)
def _no_gradients(no_gradients: None) -> None:
    """Nothing here learns."""


def picture(height: int = 70, width: int = 90) -> torch.Tensor:
    return torch.rand(3, height, width)


def test_a_window_without_context_is_the_box_resized() -> None:
    """Pillow's bilinear filter is the same where nothing shrinks."""
    image = picture()
    found = warp(image, torch.tensor([[10.0, 20, 30, 30]]), size=40, context=0)
    part = [Image.fromarray(channel[20:30, 10:30].numpy(), "F").resize((40, 40), Image.BILINEAR) for channel in image]
    inside = slice(3, -3)  # at its border Pillow repeats, the window sees the neighbours
    np.testing.assert_allclose(
        found[0][:, inside, inside], np.stack([np.asarray(p) for p in part])[:, inside, inside], atol=1e-5
    )


def test_context_is_counted_on_the_warped_window() -> None:
    """R-CNN, appendix A: 16 pixels of the network's input around the box, whatever its size."""
    image = torch.zeros(1, 100, 100)
    image[:, 20:60, 30:50] = 1
    found = warp(image, torch.tensor([[30.0, 20, 50, 60]]), size=64, context=16)[0, 0]
    assert found[17:47, 17:47].min() == 1
    assert found[:14].max() == 0
    assert found[:, :14].max() == 0


def test_beyond_the_picture_lies_the_mean_colour() -> None:
    image = torch.ones(1, 20, 20)
    found = warp(image, torch.tensor([[0.0, 0, 10, 20]]), size=40, context=10)[0, 0]
    assert found[:, :8].max() == 0
    assert found[:8].max() == 0
    assert found[12:28, 12:40].min() == 1


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_windows_do_not_depend_on_their_company(seed: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=g) * 30], dim=1)
    image = torch.rand(3, 70, 90, generator=g)
    together = warp(image, boxes, size=16, context=2)
    for row, box in zip(together, boxes, strict=True):
        torch.testing.assert_close(row, warp(image, box[None], size=16, context=2)[0])


def test_pool5_is_that_of_each_window_and_fc6_reads_it_as_fast_rcnns() -> None:
    net = window_net(3).eval()
    image = picture()
    found = net.pool5(image, BOXES)
    for row, box in zip(found, BOXES, strict=True):
        (alone,) = net.backbone(warp(image, box[None], size=96, context=7))
        torch.testing.assert_close(row, alone[0].permute(1, 2, 0).flatten(), atol=1e-5, rtol=1e-4)
    fast = build("fast_rcnn_tiny", 3, roi_size=6)
    assert fast.head.body.fc6.weight.shape == net.body.fc6.weight.shape
    fast.head.body.fc6.load_state_dict(net.body.fc6.state_dict())
    fast.head.body.fc7.load_state_dict(net.body.fc7.state_dict())
    regions = found.unflatten(1, (6, 6, 128)).permute(0, 3, 1, 2)[None]
    torch.testing.assert_close(fast.eval().head.body(regions)[0], net.body(found))
    assert net.pool5(image, BOXES[:0]).shape == (0, 128 * 36)


def test_sppnet_begins_by_saying_what_rcnns_network_says_of_the_same_cells() -> None:
    """fc6's columns of the coarser levels are 0 at first."""
    begun = window_net(3).eval()
    net = pyramid_net(begun, 3, 96, five=False).eval()
    image = torch.rand(3, 96, 96)
    (features,) = net.backbone(image[None])
    whole = torch.tensor([[0.0, 0, 96, 96]])  # of 6 x 6 cells one falls away on each side but the first
    pyramid = net.pool5(image, whole)
    torch.testing.assert_close(pyramid, spp(features, whole[None])[0])
    torch.testing.assert_close(net.body(pyramid), begun.body(pyramid[:, : 128 * 36]), atol=1e-5, rtol=1e-4)


def test_of_five_scales_a_region_takes_the_one_nearest_to_its_size() -> None:
    """SPPnet, section 4.1: the scaled region has about 224 x 224 pixels."""
    net = pyramid_net(window_net(3), 3, 688, five=True)
    assert net.sizes == (480, 576, 688, 864, 1200)
    sides = torch.tensor([100.0, 224.0, 300.0, 400.0])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), sides, sides], dim=1)
    chosen = [net.sizes[k] for k in net.choose(boxes, 688)]
    for side, size in zip(sides.tolist(), chosen, strict=True):
        nearest = min(net.sizes, key=lambda s, side=side: abs(side * s / 688 - 224))
        assert size == nearest
    assert chosen[1] == 688


def test_a_pyramid_of_several_scales_pools_each_region_from_its_own_map() -> None:
    net = pyramid_net(window_net(3), 3, 96, five=True).eval()
    image = picture(96, 128)
    boxes = torch.tensor([[5.0, 5, 20, 20], [0, 0, 120, 90], [30, 20, 61, 51]])
    found = net.pool5(image, boxes)
    maps = net.maps(image)
    assert len({int(k) for k in net.choose(boxes, 96)}) > 1
    for row, box, k in zip(found, boxes, net.choose(boxes, 96), strict=True):
        alone = spp(maps[k], box[None, None] * net.sizes[k] / 96)[0, 0]
        torch.testing.assert_close(row, alone)


@pytest.mark.parametrize("net", ["windows", "pyramid"])
@pytest.mark.parametrize("scores", ["svm", "softmax"])
def test_detections_are_those_of_a_loop_over_the_classes(net: str, scores: str) -> None:
    torch.manual_seed(0)
    begun: WindowNet | PyramidNet = window_net(3)
    if net == "pyramid":
        begun = pyramid_net(begun, 3, 96, five=False)
    model = stagewise(begun, 3).eval()
    model.scores, model.floor = scores, -0.2 if scores == "svm" else 0.2
    nn.init.normal_(model.svms.weight, std=1.0)
    nn.init.normal_(model.ridges.weight, std=0.01)
    image = (picture() * 255).byte()
    corner = torch.rand(40, 2) * torch.tensor([60.0, 40])
    boxes = torch.cat([corner, corner + 10 + torch.rand(40, 2) * 15], dim=1)
    found = model(image, boxes)
    pool5, fc7 = model.vectors(image, boxes)
    score = model.svms(fc7) if scores == "svm" else model.net.classes(fc7).softmax(1)[:, 1:]
    moved = decode(model.ridges(pool5).view(-1, 3, 4), boxes[:, None])
    moved = moved.clamp(min=0).minimum(torch.tensor([90.0, 70, 90, 70]))
    expected = []
    for k in range(3):
        above = score[:, k] > model.floor
        above &= (moved[:, k, 2:] - moved[:, k, :2] >= 1).all(dim=1)
        rows = above.nonzero()[:, 0]
        left = rows[torchvisions_nms(moved[rows, k], score[rows, k], 0.3)].tolist()
        expected += [(-float(score[row, k]), row, k) for row in left]
    expected.sort()
    assert expected
    assert [(int(k), int(row)) for k, row in zip(found.labels, found.proposals, strict=True)] == [
        (k, row) for _, row, k in expected[:100]
    ]
    assert model(image, boxes[:0]).boxes.shape == (0, 4)
