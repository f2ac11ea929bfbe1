import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from twostage.errors import DataError
from twostage.ops import masks


def random_masks(n: int = 5, h: int = 37, w: int = 23, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.random((n, h, w)) < 0.5
    found[:, 5:20, 4:15] = True
    found[0], found[1], found[2, :, :] = False, True, np.eye(h, w, dtype=bool)
    return found


def test_codes_equal_pycocotools() -> None:
    found = random_masks()
    rles = masks.encode(found)
    expected = coco.encode(np.asfortranarray(found.transpose(1, 2, 0).astype(np.uint8)))
    assert [(list(r["size"]), r["counts"]) for r in rles] == [(r["size"], r["counts"]) for r in expected]
    assert (masks.decode(rles) == found).all()
    assert masks.encode(found.astype(np.uint8) * 255) == rles
    assert masks.area(rles).tolist() == coco.area(expected).tolist() == found.sum((1, 2)).tolist()
    xywh = coco.toBbox(expected)
    assert masks.boxes(rles).tolist() == np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1).tolist()
    crowd = np.array([False, True, False])
    np.testing.assert_allclose(masks.iou(rles, rles[:3], crowd), coco.iou(expected, expected[:3], [0, 1, 0]))


def test_runs_as_text_or_numbers_are_the_same_mask() -> None:
    rle = masks.encode(random_masks(3, 4, 5))[2]
    assert masks.checked({"size": (4, 5), "counts": rle["counts"].decode()}) == rle
    runs = [0, 3, 5, 1, 2, 4, 5]
    assert masks.checked({"size": [4, 5], "counts": runs}) == {
        "size": [4, 5],
        "counts": coco.frPyObjects({"size": [4, 5], "counts": runs}, 4, 5)["counts"],
    }


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_run_lengths_survive(runs) -> None:
    size = [sum(runs), 1]
    rle = masks.checked({"size": size, "counts": runs})
    assert rle["counts"] == (coco.frPyObjects({"size": size, "counts": runs}, *size)["counts"])
    assert masks.checked(rle) == rle
    assert masks.area([rle]).tolist() == [sum(runs[1::2])]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 30))
def test_cropped_is_the_decoded_mask_where_it_is(runs, height) -> None:
    runs.append(-sum(runs) % height)
    size = [height, sum(runs) // height]
    rle = masks.checked({"size": size, "counts": runs})
    x, y, inside = masks.cropped(rle)
    whole = masks.decode([rle])[0] if size[1] else np.zeros(size, bool)
    assert inside.sum() == whole.sum()
    if inside.size:
        assert (whole[y : y + inside.shape[0], x : x + inside.shape[1]] == inside).all()
        assert inside.any(axis=0)[[0, -1]].all()
        assert inside.any(axis=1)[[0, -1]].all()
    else:
        assert not whole.any()


def test_polygons_equal_pycocotools() -> None:
    polygons = [[2.0, 3.0, 18.5, 4.0, 10.0, 30.0], [1, 1, 5, 1, 5, 5, 1, 5], [-10.0, 20.0, 40.0, 22.0, 15.0, 90.0]]
    got = masks.from_polygons(polygons, 37, 23)
    expected = coco.merge(coco.frPyObjects(polygons, 37, 23))
    assert got["counts"] == expected["counts"]
    assert masks.decode([masks.from_polygons([], 37, 23)]).sum() == 0


def test_no_masks_and_masks_without_pixels() -> None:
    assert masks.encode(np.zeros((0, 4, 5), dtype=bool)) == []
    assert masks.decode([]).shape == (0, 0, 0)
    empty = masks.encode(np.zeros((2, 0, 5), dtype=bool))
    assert masks.decode(empty).shape == (2, 0, 5)
    assert masks.area(empty).tolist() == [0, 0]
    assert masks.boxes([]).shape == (0, 4)
    assert masks.iou([], empty).shape == (0, 2)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 4], "counts": b"02"},
        {"size": [4, 4], "counts": b""},
        {"size": [4, 4], "counts": b"\xff\xfe"},
        {"size": [4, 4], "counts": b"0o"},
        {"size": [4, 4], "counts": b"oooooooooooooooo0"},
        {"size": [4, 4], "counts": "ж"},
        {"size": [4, 4], "counts": [-4, 20]},
        {"size": [4, 4], "counts": [2**62] * 4 + [16]},
        {"size": [4, 4], "counts": [2.5, 13.5]},
        {"size": [4, 4], "counts": [[16]]},
        {"size": [4, 4], "counts": [2, 13]},
        {"size": [4, 4], "counts": None},
        {"size": [-4, -4], "counts": [16]},
        {"size": [4], "counts": [4]},
        {"size": None, "counts": [4]},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"counts": [4]},
    ],
)
def test_what_is_no_mask_is_refused(rle) -> None:
    for function in (masks.decode, masks.area, masks.boxes):
        with pytest.raises(DataError):
            getattr(function, "__wrapped__", function)([rle])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=40), st.integers(0, 30), st.integers(0, 30))
def test_any_bytes_are_a_mask_or_refused(counts, h, w) -> None:
    try:
        decoded = masks.decode([{"size": [h, w], "counts": counts}])
    except DataError:
        return
    assert decoded.shape == (1, h, w)
    assert (
        coco.area(masks.encode(decoded)).tolist() == masks.area([{"size": [h, w], "counts": counts}]).tolist()
        or not h * w
    )


@pytest.mark.parametrize(
    "polygon",
    [
        [1.0, 2.0, 3.0, 4.0],
        [1.0] * 7,
        [0.0, 0.0, np.nan, 1.0, 2.0, 2.0],
        [0.0, 0.0, 1e30, 1.0, 2.0, 2.0],
        ["a"] * 6,
        [[1.0] * 6],
        None,
    ],
)
def test_what_is_no_polygon_is_refused(polygon) -> None:
    function = getattr(masks.from_polygons, "__wrapped__", masks.from_polygons)
    with pytest.raises(DataError, match="polygon"):
        function([polygon], 10, 10)


def test_masks_of_other_sizes_are_refused() -> None:
    one, other = masks.encode(np.ones((1, 4, 5), dtype=bool)), masks.encode(np.ones((1, 5, 4), dtype=bool))
    with pytest.raises(DataError, match="one size"):
        masks.decode(one + other)
    with pytest.raises(DataError, match="one size"):
        masks.iou(one, other)
