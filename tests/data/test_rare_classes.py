import numpy as np
import pytest

from twostage.data.augment import Augment
from twostage.data.dataset import Dataset
from twostage.data.loader import training_batches
from twostage.data.rare_classes import repeat_factors
from twostage.data.resize import Resize


def dataset_of(labels: list[list[int]], classes: int) -> Dataset:
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    samples = [(image, [[1, 1, 9, 9]] * len(some), some) for some in labels]
    return Dataset.from_samples(samples, [f"class {k}" for k in range(classes)])


def test_an_image_comes_as_often_as_its_rarest_class_asks_for() -> None:
    """A class in one of 100 images at a threshold of 0.04: sqrt(0.04 / 0.01) = 2 times."""
    dataset = dataset_of([[0, 0, 1], *[[0]] * 95, *[[]] * 4], 3)
    assert repeat_factors(dataset, 0.04).tolist() == [2.0] + [1.0] * 99


def test_each_time_an_image_comes_it_is_augmented_anew() -> None:
    """One image four times an epoch, in random crops."""
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    dataset = Dataset.from_samples([(image, [[1, 1, 30, 30]], [0])], ["a"])
    augment = Augment(scale=(0.5, 2.0))
    stream = training_batches(
        dataset, resize=Resize("fixed", 32), augment=augment, batch=1, seed=0, repeats=np.array([4.0])
    )
    epoch = [next(stream) for _ in range(4)]
    assert [loaded.epoch for loaded in epoch] == [0] * 4
    assert len({loaded.batch.images.sum().item() for loaded in epoch}) == 4


def test_no_image_comes_more_often_where_no_class_is_rarer_than_the_threshold() -> None:
    dataset = dataset_of([[0], [1], [], []], 2)
    assert repeat_factors(dataset, 0.25).tolist() == [1.0] * 4
    assert repeat_factors(dataset, 0.0).tolist() == [1.0] * 4


def test_objects_that_are_not_learned_do_not_count() -> None:
    """Of class 1 the second image has a crowd only."""
    dataset = dataset_of([[0], [1], [1], [0]], 2)
    dataset.crowd[1] = True
    assert repeat_factors(dataset, 1.0).tolist() == pytest.approx([2**0.5, 1.0, 2.0, 2**0.5])
