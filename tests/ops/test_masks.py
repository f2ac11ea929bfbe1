import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from twostage.ops import masks
from twostage.ops.run_lengths import RLE, compress


def random_masks(n: int = 5, h: int = 37, w: int = 23, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pixels = rng.random((n, h, w)) < 0.5
    pixels[:, 5:20, 4:15] = True
    pixels[0], pixels[1], pixels[2, :, :] = False, True, np.eye(h, w, dtype=bool)
    return pixels


def rle_of(runs: list[int], height: int, width: int) -> RLE:
    return {"size": [height, width], "counts": compress(np.array(runs))}


def test_codes_equal_pycocotools() -> None:
    pixels = random_masks()
    rles = masks.encode(pixels)
    expected = coco.encode(np.asfortranarray(pixels.transpose(1, 2, 0).astype(np.uint8)))
    assert [(list(r["size"]), r["counts"]) for r in rles] == [(r["size"], r["counts"]) for r in expected]
    assert (masks.decode(rles) == pixels).all()
    assert masks.encode(pixels.astype(np.uint8) * 255) == rles


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_run_lengths_survive(runs) -> None:
    size = [sum(runs), 1]
    counts = compress(np.array(runs))
    assert counts == coco.frPyObjects({"size": size, "counts": runs}, *size)["counts"]
    assert masks.decompress(counts).tolist() == masks.decompress(counts.decode()).tolist() == runs


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 30))
def test_cropped_is_the_decoded_mask_where_it_is(runs, height) -> None:
    runs.append(-sum(runs) % height)
    size = [height, sum(runs) // height]
    rle = rle_of(runs, *size)
    x, y, inside = masks.cropped(rle)
    whole = masks.decode([rle])[0] if size[1] else np.zeros(size, bool)
    assert inside.sum() == whole.sum()
    if inside.size:
        assert (whole[y : y + inside.shape[0], x : x + inside.shape[1]] == inside).all()
        assert inside.any(axis=0)[[0, -1]].all()
        assert inside.any(axis=1)[[0, -1]].all()
    else:
        assert not whole.any()


def test_no_masks_and_masks_without_pixels() -> None:
    assert masks.encode(np.zeros((0, 4, 5), dtype=bool)) == []
    assert masks.decode([]).shape == (0, 0, 0)
    assert masks.decode(masks.encode(np.zeros((2, 0, 5), dtype=bool))).shape == (2, 0, 5)
    assert masks.decompress(b"").tolist() == []


@pytest.mark.parametrize(
    "counts", [b"\xff\xfe", b"0o", b"oooooooooooooooo0", "ж", "o", "\x00", "~", "\ud800", b"o" * 9]
)
def test_malformed_counts_are_refused(counts) -> None:
    with pytest.raises(ValueError, match="counts"):
        masks.decompress(counts)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=40))
def test_any_bytes_are_run_lengths_or_refused(counts) -> None:
    try:
        runs = masks.decompress(counts)
    except ValueError:
        return
    if len(runs) and (runs >= 0).all() and (runs < 2**28).all():
        assert masks.decompress(compress(runs)).tolist() == runs.tolist()
