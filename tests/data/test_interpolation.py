"""Interpolation in numpy against torch's."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from twostage.data.interpolation import antialiased, bilinear

SIDES = [st.integers(1, 150)] * 4


def of_torch(pixels: np.ndarray, height: int, width: int, **options: Any) -> np.ndarray:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    return interpolate(image, (height, width), mode="bilinear", **options)[0].permute(1, 2, 0).numpy()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(*SIDES)
def test_bilinear_is_torchs(height: int, width: int, rows: int, columns: int) -> None:
    pixels = noise(height, width)
    steps = (height / rows, width / columns)
    found = bilinear(pixels, rows, columns, steps, places=np.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, of_torch(pixels, rows, columns), rtol=0, atol=2e-3)
    floats = bilinear(pixels.astype(np.float32), rows, columns, steps, places=np.float32)
    np.testing.assert_array_equal(floats, found)


@given(*SIDES)
def test_antialiased_is_torchs(height: int, width: int, rows: int, columns: int) -> None:
    pixels = noise(height, width)
    found = antialiased(pixels, rows, columns)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, of_torch(pixels, rows, columns, antialias=True), rtol=0, atol=2e-3)


@given(*SIDES, st.booleans())
def test_one_colour_stays_that_colour(height: int, width: int, rows: int, columns: int, mirrored: bool) -> None:
    pixels = np.full((height, width, 3), (7, 130, 255), dtype=np.uint8)
    steps = (height / rows, width / columns)
    for found in (bilinear(pixels, rows, columns, steps, mirrored=mirrored), antialiased(pixels, rows, columns)):
        np.testing.assert_allclose(found, np.broadcast_to(np.float32([7, 130, 255]), (rows, columns, 3)), rtol=1e-6)


def test_outside_the_image_its_edge_counts_or_its_mirror_image() -> None:
    """A row 0, 90 twice as long: its first new pixel lies a quarter of a pixel outside."""
    row = np.repeat(np.uint8([[0, 90]])[..., None], 3, axis=2)
    plain = bilinear(row, 1, 4, (1.0, 0.5))[0, :, 0]
    np.testing.assert_allclose(plain, [0, 22.5, 67.5, 90])
    mirrored = bilinear(row, 1, 4, (1.0, 0.5), mirrored=True)[0, :, 0]
    np.testing.assert_allclose(mirrored, [22.5, 22.5, 67.5, 67.5])
