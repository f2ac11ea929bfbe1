import numpy as np
import pytest

from twostage.data.dataset import Dataset
from twostage.data.rare_classes import repeat_factors


def dataset_of(labels: list[list[int]], classes: int) -> Dataset:
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    samples = [(image, [[1, 1, 9, 9]] * len(some), some) for some in labels]
    return Dataset.from_samples(samples, [f"class {k}" for k in range(classes)])


def test_an_image_comes_as_often_as_its_rarest_class_asks_for() -> None:
    """A class in one of 100 images at a threshold of 0.04: sqrt(0.04 / 0.01) = 2 times."""
    dataset = dataset_of([[0, 0, 1], *[[0]] * 95, *[[]] * 4], 3)
    assert repeat_factors(dataset, 0.04).tolist() == [2.0] + [1.0] * 99


def test_no_image_comes_more_often_where_no_class_is_rarer_than_the_threshold() -> None:
    dataset = dataset_of([[0], [1], [], []], 2)
    assert repeat_factors(dataset, 0.25).tolist() == [1.0] * 4
    assert repeat_factors(dataset, 0.0).tolist() == [1.0] * 4


def test_objects_that_are_not_learned_do_not_count() -> None:
    """Of class 1 the second image has a crowd only."""
    dataset = dataset_of([[0], [1], [1], [0]], 2)
    dataset.crowd[1] = True
    assert repeat_factors(dataset, 1.0).tolist() == pytest.approx([2**0.5, 1.0, 2.0, 2**0.5])
