"""Masks laid over images: torchvision's and detectron2's ways, and the run lengths that are made without images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import grid_sample
from torchvision.models.detection.roi_heads import paste_masks_in_image

from twostage.ops import masks as rle_masks
from twostage.ops.paste import Paste, paste, patches

HEIGHT, WIDTH = 90, 130


def grids(count: int, cells: int = 28, seed: int = 0) -> np.ndarray:
    """Smooth probabilities."""
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (cells, cells), mode="bicubic")[:, 0].clamp(0, 1).numpy()


def boxes(count: int, seed: int = 0) -> np.ndarray:
    """Boxes on the image; the first is all of it, some touch its border."""
    rng = np.random.default_rng(seed)
    middle, side = rng.random((count, 2)) * [WIDTH, HEIGHT], np.exp(rng.uniform(-1, 4.6, (count, 2)))
    found = np.concatenate([middle - side / 2, middle + side / 2], axis=1)
    found[0] = [0, 0, WIDTH, HEIGHT]
    return found.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32)


def pasted(masks: np.ndarray, where: np.ndarray, *, threshold: float = 0.5, way: Paste = "exact") -> np.ndarray:
    """The pixels of the whole image, without run lengths."""
    out = np.zeros((len(masks), HEIGHT, WIDTH), dtype=bool)
    for whole, (top, left, inside) in zip(out, patches(masks, where, HEIGHT, WIDTH, threshold, way), strict=True):
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out


def test_rounded_is_torchvisions_to_the_pixel() -> None:
    masks, where = grids(60), boxes(60)
    theirs = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(where), (HEIGHT, WIDTH))[:, 0]
    ours = pasted(masks, where, way="rounded")
    # A probability of exactly one half may round to either side.
    assert (ours != (theirs >= 0.5).numpy()).mean() < 1e-6
    assert ours.any()


def test_exact_is_what_sampling_at_the_pixels_middles_gives() -> None:
    """detectron2's `paste_masks_in_image` (layers/mask_ops.py) samples so."""
    masks, where = grids(40, seed=1), boxes(40, seed=1)
    x, y = torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5
    ours = pasted(masks, where)
    for grid, (x1, y1, x2, y2), mine in zip(masks, where.astype(float), ours, strict=True):
        if x2 - x1 < 0.01 or y2 - y1 < 0.01:
            continue
        u, v = (x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1
        points = torch.stack(torch.broadcast_tensors(u[None, :], v[:, None]), dim=-1)[None].double()
        whole = grid_sample(torch.from_numpy(grid)[None, None].double(), points, align_corners=False)[0, 0]
        clear = (whole - 0.5).abs() > 1e-4
        assert torch.equal(torch.from_numpy(mine)[clear], (whole >= 0.5)[clear])


@pytest.mark.parametrize("way", ["exact", "rounded"])
@given(seed=st.integers(0, 10**6), cells=st.sampled_from([2, 7, 28]), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_run_lengths_are_those_of_the_pixels(way: Paste, seed: int, cells: int, threshold: float) -> None:
    masks, where = grids(5, cells, seed), boxes(5, seed)
    pixels = pasted(masks, where, threshold=threshold, way=way)
    rles = paste(masks, where, HEIGHT, WIDTH, threshold=threshold, way=way)
    assert rles == rle_masks.encode(pixels)
    np.testing.assert_array_equal(rle_masks.decode(rles), pixels)


def test_a_mask_of_the_whole_image_is_one_run() -> None:
    where = np.array([[-40, -40, WIDTH + 40, HEIGHT + 40]], dtype=np.float32)
    (rle,) = paste(np.ones((1, 4, 4), np.float32), where, HEIGHT, WIDTH)
    assert rle_masks.decode([rle]).all()
    assert rle == rle_masks.encode(np.ones((1, HEIGHT, WIDTH), bool))[0]


def test_nothing_inside_and_nothing_at_all() -> None:
    where = boxes(3)
    assert not rle_masks.decode(paste(np.zeros((3, 28, 28), np.float32), where, HEIGHT, WIDTH)).any()
    assert paste(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), HEIGHT, WIDTH) == []
    outside = np.array([[WIDTH, HEIGHT, WIDTH, HEIGHT]], dtype=np.float32)
    assert not rle_masks.decode(paste(np.ones((1, 28, 28), np.float32), outside, HEIGHT, WIDTH)).any()
