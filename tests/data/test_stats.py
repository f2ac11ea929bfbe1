from collections.abc import Callable
from pathlib import Path

import pytest

from twostage.data.recognise import open_dataset
from twostage.data.resize import Resize
from twostage.data.stats import most_crowded, smallest, stats

OBJECTS = {
    "a": [("dog", (1, 1, 10, 10)), ("dog", (11, 1, 30, 20)), ("cat", (1, 1, 40, 10))],  # 10 x 10, 20 x 20, 40 x 10
    "b": [("dog", (1, 1, 30, 30))],  # 30 x 30
    "c": [],
}


def test_numbers_of_images_of_60_by_40(make_voc: Callable[..., Path]) -> None:
    found = stats(open_dataset(make_voc(OBJECTS), split="train"), Resize(size=80, max_size=200))
    assert (found.images, found.without_objects, found.objects) == (3, 1, 4)
    assert found.classes == {
        "cat": {"objects": 1, "images": 1, "median_side": 20.0},
        "dog": {"objects": 3, "images": 2, "median_side": 20.0},
    }
    assert (found.widths[0], found.heights[-1]) == (60, 40)
    assert (found.objects_an_image[0], found.objects_an_image[3], found.objects_an_image[-1]) == (0, 1, 3)
    assert (found.sides[0], found.sides[3], found.sides[-1]) == (10, 20, 30)
    assert (found.resized_sides[0], found.resized_sides[-1]) == (20, 60)  # twice as large
    assert (found.aspects[0], found.aspects[-1]) == (1, 4)
    assert found.small_medium_large == [1, 0, 0]


def test_the_hardest_images(make_voc: Callable[..., Path]) -> None:
    dataset = open_dataset(make_voc(OBJECTS), split="train")
    assert smallest(dataset, 5).tolist() == [0, 1]
    assert most_crowded(dataset, 2).tolist() == [0, 1]


def test_no_objects_at_all(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a": [], "b": [("dog", (1, 1, 10, 10))]}, train=["a"], val=["b"])
    found = stats(open_dataset(root, split="train"), Resize())
    assert (found.objects, found.sides, found.small_medium_large) == (0, [], [])


def test_blood_cells_as_its_makers_count_them(real_data: Path) -> None:
    found = stats(open_dataset(real_data / "blood-cells", split="trainval"), Resize())
    assert found.images == 292
    assert sum(row["objects"] for row in found.classes.values()) == found.objects
    assert found.classes["WBC"]["median_side"] == pytest.approx(190.7, abs=0.1)
