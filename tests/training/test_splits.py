"""What is said of the data before a run."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from twostage import Dataset
from twostage.data.scenes import write_scenes
from twostage.errors import DataError, UsageError
from twostage.training.options import TrainOptions
from twostage.training.splits import given_splits, open_splits


def dataset(labels: list[str], names: list[str]) -> Dataset:
    """One image per object."""
    image = np.zeros((20, 20, 3), np.uint8)
    return Dataset.from_samples([(image, [[2, 2, 9, 9]], [label]) for label in labels], names)


def test_classes_with_few_objects_or_none_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "twostage"):
        given_splits(dataset(["cat"] * 5 + ["dog"], ["cat", "dog", "cow"]), None)
    assert [record.getMessage() for record in caplog.records] == [
        "The split 'train' has no object of: cow. They cannot be learned.",
        "The split 'train' has hardly an object of: dog (1). Label more of them.",
    ]


def test_without_any_object_there_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="'train' has no object to learn from"):
        given_splits(Dataset.from_samples([(np.zeros((20, 20, 3), np.uint8), [], [])], ["cat"]), None)


def test_a_mistyped_split_is_named_before_one_to_validate_on_is_missed(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes", train=2, val=1)
    shutil.rmtree(data / "val")
    with pytest.raises(UsageError, match=r"has no split 'trian'. Did you mean 'train'"):
        open_splits(TrainOptions(data, train_split="trian"))


@pytest.mark.parametrize(
    ("val_split", "message"),
    [(None, "training on 'train', validating on 'val'"), ("none", "without a split to validate on; not used: 'val'")],
)
def test_splits_that_are_not_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, val_split: str | None, message: str
) -> None:
    """With --folds too, where a split to validate on would be expected to be used."""
    data = write_scenes(tmp_path / "scenes", train=2, val=1)
    with caplog.at_level(logging.INFO, "twostage"):
        open_splits(TrainOptions(data, val_split=val_split))
    assert caplog.records[0].getMessage().endswith(message)
