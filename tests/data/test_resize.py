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


@given(st.integers(20, 90), st.integers(20, 90), st.integers(20, 90), st.integers(30, 160))
def test_caffes_is_opencvs_by_a_factor(height: int, width: int, size: int, limit: int) -> None:
    """`lib/fast_rcnn/test.py`, `_get_image_blob`: the longer side counts after it is rounded."""
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    factor = size / min(height, width)
    if np.round(factor * max(height, width)) > limit:
        factor = limit / max(height, width)
    expected = cv2.resize(pixels.astype(np.float32), None, None, fx=factor, fy=factor, interpolation=1)
    resize = Resize(size=size, max_size=limit, by="caffe")
    found = resize(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy() * 255
    assert resize.shape(height, width) == found.shape[:2] == expected.shape[:2]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert resize.factors(height, width) == pytest.approx((1 / factor, 1 / factor))
    assert resize.extent(height, width) == pytest.approx((height * factor, width * factor))


def test_halves_of_a_side_go_to_the_even_number_as_in_scipy() -> None:
    """400 x 503 at 600: 754.5."""
    for by in ("skimage", "caffe"):
        assert Resize(size=600, max_size=1000, rounding="nearest", by=by).shape(400, 503) == (600, 754)  # type: ignore[arg-type]


@given(st.integers(20, 90), st.integers(20, 90), st.integers(20, 90), st.integers(30, 160))
def test_skimages_is_scipys_with_mirrored_borders(height: int, width: int, size: int, limit: int) -> None:
    """`skimage.transform.resize(mode="reflect")` is `scipy.ndimage.zoom` with "mirror" on a grid of pixels."""
    ndimage = pytest.importorskip("scipy.ndimage")
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resize = Resize(size=size, max_size=limit, rounding="nearest", by="skimage")
    rows, columns = resize.shape(height, width)
    zoom = (rows / height, columns / width, 1)
    expected = ndimage.zoom(pixels.astype(np.float64), zoom, order=1, mode="mirror", grid_mode=True)
    found = resize(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert resize.factors(height, width) == (width / columns, width / columns)
    assert resize.extent(height, width) == pytest.approx((height * columns / width, columns))


@given(st.integers(20, 90), st.integers(20, 90), st.integers(20, 90))
def test_each_axis_has_its_own_factor(height: int, width: int, size: int) -> None:
    resize = Resize(size=size, max_size=200)
    rows, columns = resize.shape(height, width)
    assert resize.factors(height, width) == (height / rows, width / columns)
    assert resize.extent(height, width) == (rows, columns)
