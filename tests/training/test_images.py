"""The drawn images of a run folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twostage.data.dataset import Dataset
from twostage.data.flat import FlatStrings
from twostage.data.recognise import open_dataset
from twostage.evaluation.results import Accumulator
from twostage.training.images import save_predictions


@pytest.mark.parametrize(
    "name", ["{root}/images/a.jpg", "C:\\images\\a.jpg", "../other/a.jpg", "train/" + 9 * f"{'b' * 50}/" + "a.jpg"]
)
def test_predictions_are_drawn_into_their_folder_wherever_an_image_is(name: str, tmp_path: Path) -> None:
    """Annotation files name images by absolute paths too, some by those of another machine."""
    pixels = np.zeros((20, 20, 3), np.uint8)
    dataset = Dataset.from_samples([(pixels, [[2, 2, 9, 9]], [0])] * 2, ["cell"])
    dataset = replace(dataset, files=FlatStrings.of([name.format(root=tmp_path), "b.jpg"]))
    save_predictions(tmp_path / "run" / "predictions", dataset, Accumulator().results())
    drawn = {path.name for path in (tmp_path / "run" / "predictions").iterdir()}
    assert len(drawn) == 2
    assert all(one[-5:] in ("a.jpg", "b.jpg") and ":" not in one for one in drawn)


def listed(root: Path, image: Path) -> Dataset:
    """A YOLO data set that lists one image of another folder."""
    image.parent.mkdir(parents=True)
    root.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image)
    image.with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "train.txt").write_text(f"{image}\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    return open_dataset(root, split="train")


@pytest.mark.parametrize("folders", ["images", "/".join(["a folder of a name that is as long as others"] * 6)])
def test_pictures_of_images_elsewhere_lie_in_the_folder_of_the_run(tmp_path: Path, folders: str) -> None:
    dataset = listed(tmp_path / "data", tmp_path / folders / "a.png")
    assert Path(dataset.file_name(0)).is_absolute()
    save_predictions(tmp_path / "run", dataset, Accumulator().results())
    (picture,) = (tmp_path / "run").iterdir()
    assert picture.name.endswith("-a.jpg")
