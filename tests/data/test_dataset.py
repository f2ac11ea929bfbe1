"""A data set of chosen classes, and of a detector's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twostage.data.dataset import difference, match_classes, select_classes
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


def test_classes_are_matched_by_name_and_objects_stay(real_data: Path) -> None:
    whole = open_dataset(real_data / "coco-photos", split="instances")
    some = select_classes(whole, ["dog", "person", "car"])
    matched = match_classes(some, ["person", "unicorn", "car", "dragon", "dog"])
    assert matched.names == ("person", "unicorn", "car", "dragon", "dog")
    assert matched.category_ids[[0, 2, 4]].tolist() == [1, 3, 18]
    assert len(set(matched.category_ids.tolist())) == 5
    assert (matched.category_ids[[1, 3]] < 0).all(), "the files have no id for them"
    assert [matched.names[i] for i in matched.labels] == [some.names[i] for i in some.labels]
    assert matched.category_ids[matched.labels].tolist() == some.category_ids[some.labels].tolist()
    for index in range(len(some)):
        np.testing.assert_array_equal(matched.objects(index).boxes, some.objects(index).boxes)
        assert matched.masks_of(index) == some.masks_of(index)
    assert difference(some, select_classes(matched, some.names), range(len(some))) == ""


def test_fields_of_classes_move_with_them(make_coco: Callable[..., Path]) -> None:
    categories = [{"id": 7, "name": "cat", "supercategory": "pet"}, {"id": 3, "name": "dog", "colour": "brown"}]
    matched = match_classes(open_dataset(make_coco([], categories=categories), split="train"), ["cat", "bird", "dog"])
    assert matched.fields is not None
    assert matched.fields.classes == ('{"supercategory": "pet"}', "", '{"colour": "brown"}')


def test_a_data_set_without_any_class_has_those_of_the_detector(make_voc: Callable[..., Path]) -> None:
    empty = open_dataset(make_voc({"a": []}), split="train")
    assert empty.names == ()
    matched = match_classes(empty, ["cat", "dog"])
    assert (matched.names, len(matched), len(matched.labels)) == (("cat", "dog"), 1, 0)


def test_classes_that_a_detector_does_not_have_are_named_with_the_nearest(make_voc: Callable[..., Path]) -> None:
    dataset = open_dataset(make_voc({"a": [("cta", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))]}), split="train")
    with pytest.raises(UsageError, match=r"does not have its class cta\. Did you mean 'cat'\?"):
        match_classes(dataset, ["cat", "dog"])
    with pytest.raises(UsageError, match=r"does not have its classes cta, dog\. Known: bird\."):
        match_classes(dataset, ["bird"])
