"""One-to-one matching of two sides' detections."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostage.evaluation.results import Results
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.ops.masks import encode
from twostage.parity.agreement import agreement

POST = PostprocessConfig()


def results(*rows: tuple[int, float, float, int], masks: list[dict] | None = None) -> Results:
    """From (image, left, score, class): boxes of 10 pixels."""
    boxes = np.array([[x, 0, x + 10, 10] for _, x, _, _ in rows], dtype=float).reshape(-1, 4)
    images, _, scores, classes = (np.array(column) for column in zip(*rows, strict=True)) if rows else np.zeros((4, 0))
    return Results(images.astype(int), boxes, scores.astype(float), classes.astype(int), masks)


@given(st.permutations(range(6)), st.floats(0, 4e-3))
def test_the_order_does_not_matter_and_small_differences_pass(order: list[int], shift: float) -> None:
    rows = [(i % 2, 20.0 * i, 0.9 - 0.1 * i, i % 3) for i in range(6)]
    moved = results(*[(rows[i][0], rows[i][1] + shift, *rows[i][2:]) for i in order])
    found = agreement(results(*rows), moved, 2, POST)
    assert found.same()
    assert (found.matched, found.expected, found.found) == (6, 6, 6)
    assert found.pixels.largest == pytest.approx(shift, abs=1e-12)


@pytest.mark.parametrize(
    "other",
    [
        [(0, 0.0, 0.9, 1)],  # another class
        [(1, 0.0, 0.9, 0)],  # another image
        [(0, 5.0, 0.9, 0)],  # elsewhere
        [(0, 0.1, 0.9, 0)],  # not within the tolerance
        [(0, 0.0, 0.8, 0)],  # another score
        [],
        [(0, 0.0, 0.9, 0), (0, 0.0, 0.9, 0)],  # twice
    ],
)
def test_what_is_not_the_same(other: list[tuple[int, float, float, int]]) -> None:
    one = results((0, 0.0, 0.9, 0))
    for pair in ((one, results(*other)), (results(*other), one)):
        assert not agreement(*pair, 2, POST).same()


def test_a_detection_at_the_threshold_may_be_alone() -> None:
    one = results((0, 0.0, 0.9, 0), (0, 50.0, 0.05001, 0))
    found = agreement(one, results((0, 0.0, 0.9, 0)), 1, POST)
    assert found.at_the_edge == 1
    assert found.same()


def test_a_detection_at_the_end_of_a_full_list_may_be_another() -> None:
    post = PostprocessConfig(max_det=2)
    one, other = results((0, 0.0, 0.9, 0), (0, 50.0, 0.5, 0)), results((0, 0.0, 0.9, 0), (0, 90.0, 0.5, 0))
    assert agreement(one, other, 1, post).same()
    assert not agreement(one, other, 1, POST).same()


def test_lists_that_end_at_the_threshold_are_not_alike_for_that() -> None:
    """All of both sides are at the edge, and none is the other's."""
    sides = [results(*[(0, 100.0 * i + shift, 0.05005, 0) for i in range(9)]) for shift in (0, 50)]
    found = agreement(*sides, 1, POST)
    assert (found.matched, found.at_the_edge) == (0, 18)
    assert not found.same()


def test_masks_differ_by_a_share_of_their_pixels() -> None:
    whole, half = np.ones((1, 10, 10), bool), np.ones((1, 10, 10), bool)
    half[:, :5] = False
    row = (0, 0.0, 0.9, 0)
    found = agreement(results(row, masks=encode(whole)), results(row, masks=encode(half)), 1, POST)
    assert found.masks is not None
    assert found.masks.largest == 0.5
    assert not found.same()


def test_masks_of_one_side_alone_are_said() -> None:
    row = (0, 0.0, 0.9, 0)
    masked = results(row, masks=encode(np.ones((1, 10, 10), bool)))
    assert agreement(masked, results(row), 1, POST).one_without_masks
    assert not agreement(results(row), results(row), 1, POST).one_without_masks
