"""Data sets in memory of images without content."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from twostage import Dataset


def dataset_of(
    shapes: Sequence[tuple[int, int]], boxes: Sequence[Sequence[Sequence[float]]], labels: Sequence[list[int]] = ()
) -> Dataset:
    """Images of these heights and widths with these boxes, of the classes "a" and "b"; without labels all of "a"."""
    of_image = labels or [[0] * len(own) for own in boxes]
    samples = [
        (np.zeros((*shape, 3), np.uint8), list(own), ids)
        for shape, own, ids in zip(shapes, boxes, of_image, strict=True)
    ]
    return Dataset.from_samples(samples, ["a", "b"])


@pytest.fixture
def make_blank() -> Callable[..., Dataset]:
    """`dataset_of`, for tests."""
    return dataset_of
