"""Flat strings, masks and run lengths give back what went in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from twostage.data.flat import NO_MASK, RLE, FlatMasks, FlatStrings, Mask, pack_polygons, unpack_polygons
from twostage.data.runs import compress, decompress


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_strings_come_back(strings: list[str]) -> None:
    flat = FlatStrings.of(strings)
    assert [flat[i] for i in range(len(flat))] == strings


def test_names_that_are_no_utf8_come_back() -> None:
    assert FlatStrings.of(["\udcff.jpg"])[0] == "\udcff.jpg"


@given(st.lists(st.lists(st.floats(allow_nan=False), min_size=2), min_size=1))
def test_polygons_come_back(rings: list[list[float]]) -> None:
    assert [ring.tolist() for ring in unpack_polygons(pack_polygons(rings))] == rings


def test_masks_come_back() -> None:
    masks = [Mask(RLE, b"abc"), NO_MASK, Mask(RLE, b"")]
    flat = FlatMasks.of(masks)
    assert [flat[i] for i in range(len(flat))] == masks


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_are_those_of_pycocotools(height: int, width: int, seed: int, fill: float) -> None:
    pixels = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < fill, dtype=np.uint8)
    packed = coco_mask.encode(pixels)["counts"]
    counts = decompress(packed.decode())
    assert sum(counts) == height * width
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    np.testing.assert_array_equal(values, pixels.ravel(order="F"))
    assert compress(counts) == packed


@given(st.lists(st.integers(0, 2**32)))
def test_compression_comes_back(counts: list[int]) -> None:
    assert decompress(compress(counts).decode()) == counts


@pytest.mark.parametrize("text", ["o", "ooo", "\x00", "~", "é", "o" * 100 + "1"])
def test_texts_that_are_no_run_lengths_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="counts"):
        decompress(text)
