"""The drawn images of a run folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twostage.data.dataset import Dataset
from twostage.data.flat import FlatStrings
from twostage.evaluation.results import Accumulator
from twostage.training.images import save_predictions


@pytest.mark.parametrize(
    "name", ["{root}/images/a.jpg", "C:\\images\\a.jpg", "../other/a.jpg", "train/" + 9 * f"{'b' * 50}/" + "a.jpg"]
)
def test_predictions_are_drawn_into_their_folder_wherever_an_image_is(name: str, tmp_path: Path) -> None:
    """Annotation files name images by absolute paths too, some by those of another machine."""
    dataset = two_images()
    dataset = replace(dataset, files=FlatStrings.of([name.format(root=tmp_path), "b.jpg"]))
    save_predictions(tmp_path / "run" / "predictions", dataset, Accumulator().results())
    drawn = {path.name for path in (tmp_path / "run" / "predictions").iterdir()}
    assert len(drawn) == 2
    assert all(one[-5:] in ("a.jpg", "b.jpg") and ":" not in one for one in drawn)


def test_images_whose_long_names_end_alike_have_a_picture_each(tmp_path: Path) -> None:
    dataset = two_images()
    tail = "/".join(["a folder of a name that is as long as others"] * 6)
    dataset = replace(dataset, files=FlatStrings.of([f"{camera}/{tail}/0001.jpg" for camera in ("left", "right")]))
    save_predictions(tmp_path / "run", dataset, Accumulator().results())
    assert len(list((tmp_path / "run").iterdir())) == 2


def two_images() -> Dataset:
    return Dataset.from_samples([(np.zeros((20, 20, 3), np.uint8), [[2, 2, 9, 9]], [0]) for _ in range(2)], ["cell"])
