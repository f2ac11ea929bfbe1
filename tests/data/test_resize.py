"""Resizing as torchvision's detectors resize, or to a fixed shape."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from twostage.data.resize import Resize
from twostage.data.uint8_resize import by_opencv


@given(*[st.integers(1, 90)] * 4, st.integers(0, 3))
def test_whole_grey_levels_are_opencvs_to_the_last_bit(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = pytest.importorskip("cv2").resize(pixels, (columns, rows), interpolation=1)
    np.testing.assert_array_equal(by_opencv(pixels, rows, columns), expected)


@pytest.mark.parametrize("by", ["pillow", "opencv"])
def test_uint8_is_resized_in_whole_grey_levels(by: str) -> None:
    """Floats, which no other project resizes, come near to them."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    resize = Resize(size=40, rounding="nearest", by=by)  # type: ignore[arg-type]
    levels = resize(tensor) * 255
    torch.testing.assert_close(levels, levels.round())
    assert (levels - resize(tensor.float() / 255) * 255).abs().max() < 1.5


@given(st.integers(20, 200), st.integers(20, 200), st.integers(30, 120), st.integers(121, 200))
def test_shortest_side_is_torchvisions_transform(height: int, width: int, size: int, limit: int) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))
    theirs = GeneralizedRCNNTransform(size, limit, [0.0] * 3, [1.0] * 3, size_divisible=1)
    expected = theirs([pixels.float() / 255])[0].tensors[0]
    resize = Resize(size=size, max_size=limit)
    assert resize.shape(height, width) == tuple(expected.shape[1:])
    torch.testing.assert_close(resize(pixels), expected)


def test_the_papers_sizes() -> None:
    assert Resize(size=600, max_size=1000).shape(375, 500) == (600, 800)
    assert Resize(size=600, max_size=1000).shape(375, 1000) == (375, 1000)
    assert Resize(mode="fixed", size=800).shape(375, 500) == (800, 800)
    assert Resize(size=800, rounding="nearest").shape(427, 640) == (800, 1199)
    assert Resize(size=800).shape(1, 5000) == (1, 1333)


@pytest.mark.parametrize("antialias", [False, True])
def test_fixed_shape_and_values_from_zero_to_one(antialias: bool) -> None:
    white = torch.full((3, 50, 70), 255, dtype=torch.uint8)
    out = Resize(mode="fixed", size=32, antialias=antialias)(white)
    assert out.shape == (3, 32, 32)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.ones(3, 32, 32))
