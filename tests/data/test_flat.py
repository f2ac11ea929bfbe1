"""Flat strings and masks give back what went in."""

from hypothesis import given
from hypothesis import strategies as st

from twostage.data.flat import NO_MASK, RLE, FlatMasks, FlatStrings, Mask, pack_polygons, unpack_polygons


@given(st.lists(st.text(st.characters())))
def test_strings_come_back(strings: list[str]) -> None:
    flat = FlatStrings.of(strings)
    assert [flat[i] for i in range(len(flat))] == strings


def test_names_that_are_no_utf8_come_back() -> None:
    names = ["\udcff.jpg", "\ud800.jpg"]  # of a file, and of half a letter, which JSON may hold
    flat = FlatStrings.of(names)
    assert [flat[0], flat[1]] == names


@given(st.lists(st.lists(st.floats(allow_nan=False), min_size=2), min_size=1))
def test_polygons_come_back(rings: list[list[float]]) -> None:
    assert [ring.tolist() for ring in unpack_polygons(pack_polygons(rings))] == rings


def test_masks_come_back() -> None:
    masks = [Mask(RLE, b"abc"), NO_MASK, Mask(RLE, b"")]
    flat = FlatMasks.of(masks)
    assert [flat[i] for i in range(len(flat))] == masks
