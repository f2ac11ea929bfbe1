"""A data set of chosen classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twostage.data.dataset import select_classes
from twostage.data.recognise import open_dataset
from twostage.errors import UsageError


def test_chosen_classes_keep_their_objects_and_all_images(real_data: Path) -> None:
    whole = open_dataset(real_data / "coco-photos", split="instances")
    chosen = select_classes(whole, ["dog", "person"])
    assert chosen.names == ("dog", "person")
    assert chosen.category_ids.tolist() == [18, 1]
    assert len(chosen) == len(whole)
    for index in range(len(whole)):
        before, after = whole.objects(index), chosen.objects(index)
        keep = np.isin(before.labels, [whole.names.index("dog"), whole.names.index("person")])
        np.testing.assert_array_equal(after.boxes, before.boxes[keep])
        np.testing.assert_array_equal(after.annotation_ids, before.annotation_ids[keep])
        assert [chosen.names[i] for i in after.labels] == [whole.names[i] for i in before.labels[keep]]
        assert chosen.masks_of(index) == [m for m, k in zip(whole.masks_of(index), keep, strict=True) if k]


def test_classes_that_are_not_there_are_named_with_the_nearest(make_voc: Callable[..., Path]) -> None:
    dataset = open_dataset(make_voc({"a": [("cat", (1, 1, 9, 9))]}), split="train")
    with pytest.raises(UsageError, match="Did you mean 'cat'"):
        select_classes(dataset, ["cta"])
    with pytest.raises(UsageError, match="twice"):
        select_classes(dataset, ["cat", "cat"])
