"""R-CNN's regions: warped windows, each through the network alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import make_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from twostage.errors import UsageError
from twostage.models.build import build
from twostage.models.rcnn import WarpConfig, warp
from twostage.models.regions.pooling import RegionFeatures
from twostage.models.zoo import ZOO

BOXES = torch.tensor([[10.0, 12, 40, 60], [0, 0, 90, 70], [50, 30, 58, 36], [70, 50, 90, 70]])


def image_of(height: int = 70, width: int = 90) -> torch.Tensor:
    return torch.rand(3, height, width)


@pytest.mark.parametrize("context", [20, 48])
def test_a_context_that_leaves_no_pixel_for_the_box_is_refused(context: int) -> None:
    config = replace(ZOO["rcnn_tiny"], regions=WarpConfig(size=40, context=context))
    with pytest.raises(UsageError, match=rf"context is {context} .* windows of 40 pixels"):
        build(config, 2)


def test_a_window_without_context_is_the_box_resized() -> None:
    """Pillow's bilinear filter is the same where nothing shrinks."""
    image = image_of()
    windows = warp(image, torch.tensor([[10.0, 20, 30, 30]]), size=40, context=0)
    part = [Image.fromarray(channel[20:30, 10:30].numpy(), "F").resize((40, 40), Image.BILINEAR) for channel in image]
    inside = slice(3, -3)  # at its border Pillow repeats, the window sees the neighbours
    np.testing.assert_allclose(
        windows[0][:, inside, inside], np.stack([np.asarray(p) for p in part])[:, inside, inside], atol=1e-5
    )


def test_context_is_counted_on_the_warped_window() -> None:
    """R-CNN, appendix A: 16 pixels of the network's input around the box, whatever its size."""
    image = torch.zeros(1, 100, 100)
    image[:, 20:60, 30:50] = 1
    windows = warp(image, torch.tensor([[30.0, 20, 50, 60]]), size=64, context=16)[0, 0]
    assert windows[17:47, 17:47].min() == 1
    assert windows[:14].max() == 0
    assert windows[:, :14].max() == 0


def test_beyond_the_image_lies_the_mean_colour() -> None:
    image = torch.ones(1, 20, 20)
    windows = warp(image, torch.tensor([[0.0, 0, 10, 20]]), size=40, context=10)[0, 0]
    assert windows[:, :8].max() == 0
    assert windows[:8].max() == 0
    assert windows[12:28, 12:40].min() == 1


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_windows_do_not_depend_on_their_company(seed: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=g) * 30], dim=1)
    image = torch.rand(3, 70, 90, generator=g)
    together = warp(image, boxes, size=16, context=2)
    for row, box in zip(together, boxes, strict=True):
        torch.testing.assert_close(row, warp(image, box[None], size=16, context=2)[0])


def test_a_window_of_a_bf16_image_is_sampled_at_exact_coordinates() -> None:
    image = image_of(300, 400)
    box = torch.tensor([[301.3, 203.7, 309.9, 210.1]])
    found = warp(image.bfloat16(), box, size=16, context=2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), warp(image.bfloat16().float(), box, size=16, context=2), atol=0.01, rtol=0
    )


@torch.no_grad()
def test_pool5_is_that_of_each_window_and_fc6_reads_it_as_fast_rcnns() -> None:
    head = make_model("rcnn_tiny", 3).eval().head
    image = image_of()
    pool5, fc7 = head.vectors(RegionFeatures((image[None],)), BOXES[None])
    for row, box in zip(pool5[0], BOXES, strict=True):
        (alone,) = head.regions.backbone(warp(image, box[None], size=96, context=7))
        torch.testing.assert_close(row, alone[0].permute(1, 2, 0).flatten(), atol=1e-5, rtol=1e-4)
    fast = make_model("fast_rcnn_tiny", 3, roi_size=6).eval().head.body
    assert fast.fc6.weight.shape == head.body.fc6.weight.shape
    fast.load_state_dict(head.body.state_dict())
    regions = pool5.unflatten(2, (6, 6, 128)).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(fast(regions), fc7)
    assert head.vectors(RegionFeatures((image[None],)), BOXES[None, :0])[0].shape == (1, 0, 128 * 36)


@torch.no_grad()
def test_more_windows_than_one_pass_takes_are_those_of_each_image() -> None:
    regions = make_model("rcnn_tiny", 3).eval().head.regions
    images = torch.stack([image_of(), image_of()])
    corner = torch.rand(2, 150, 2) * 50
    boxes = torch.cat([corner, corner + 10], dim=2)
    together = regions(RegionFeatures((images,)), boxes)
    assert together.shape == (2, 150, 128, 6, 6)
    last = regions(RegionFeatures((images[1:],)), boxes[1:, -3:])
    torch.testing.assert_close(together[1:, -3:], last, atol=1e-5, rtol=1e-4)
