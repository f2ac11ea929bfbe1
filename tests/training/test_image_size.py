"""Larger images for small objects, where a training begins from a small pretrained network."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twostage.data.dataset import Dataset
from twostage.models.zoo import named
from twostage.training import subruns, train
from twostage.training.cross_fitting import cross_fit
from twostage.training.folder import read_options
from twostage.training.image_size import with_image_size
from twostage.training.options import TrainOptions
from twostage.training.splits import Splits
from twostage.weights.file import Card, save_weights

LITE = TrainOptions(Path("data"), weights="efficientnet_lite0-imagenet")


def squares(*images: Sequence[float]) -> Dataset:
    """Images of 320 x 320 pixels, each with one square of every side."""
    samples = []
    for sides in images:
        boxes = [[4.0 * place, 8.0, 4.0 * place + side, 8.0 + side] for place, side in enumerate(sides)]
        image = np.full((320, 320, 3), 90, np.uint8)
        samples.append((image, np.array(boxes).reshape(-1, 4), np.zeros(len(sides), np.int64)))
    return Dataset.from_samples(samples, ["square"])


@pytest.mark.parametrize(("side", "size"), [(100, 320), (24, 320), (20, 384), (12.5, 640), (3, 640)])
def test_the_median_object_has_24_pixels_up_to_twice_the_size(side: float, size: int) -> None:
    assert with_image_size(LITE, squares([side])).size == size


def test_it_is_of_the_median_object_that_is_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    assert with_image_size(LITE, squares([8, 30, 90])).size == 320
    with caplog.at_level(logging.INFO, "twostage"):
        assert (
            with_image_size(LITE, replace(squares([16, 90, 90]), difficult=np.array([False, True, True]))).size == 480
        )
    assert "Image size 480 instead of 320, for small objects." in caplog.text


def test_without_objects_it_is_the_models() -> None:
    assert with_image_size(LITE, squares([])).size == 320


@pytest.mark.parametrize(
    "given",
    [
        {"size": 256},
        {"max_size": 500},
        {"model_fields": {"image.size": 256}},
        {"recipe": "finetune"},
        {"weights": "none"},
        {"model": "faster_rcnn_tiny_fpn", "weights": None},
        {"model": "faster_rcnn_resnet50_fpn", "weights": None},
    ],
)
def test_a_size_that_is_given_stays_and_other_recipes_have_their_own(given: dict[str, Any]) -> None:
    options = replace(LITE, **given)
    assert with_image_size(options, squares([12])) == options


def test_a_detector_keeps_its_size(tmp_path: Path) -> None:
    weights = tmp_path / "detector.safetensors"
    save_weights(weights, {}, Card("faster_rcnn_lite0_fpn", ("square",), named("faster_rcnn_lite0_fpn")))
    options = replace(LITE, weights=str(weights))
    assert with_image_size(options, squares([12])) == options


@pytest.mark.parametrize(("sides", "size"), [((16, 16, 90), 480), ((16, 90, 90), 320)])
def test_folds_have_the_size_of_all_images(
    sides: Sequence[float], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not each that of its own, of which the median object may have another size."""
    sizes = []

    def stopped(options: TrainOptions, splits: Splits, **_: object) -> None:
        sizes.append(with_image_size(options, splits.train).size)
        raise KeyboardInterrupt

    monkeypatch.setattr(subruns, "run", stopped)
    dataset = squares(*([side] for side in sides))
    with pytest.raises(KeyboardInterrupt):
        train(dataset, folds=3, out=tmp_path / "run", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        cross_fit(dataset, TrainOptions(Path("data"), folds=3, out=tmp_path / "fit", quiet=True))
    assert sizes == [size, size]
    assert read_options(tmp_path / "run").size == read_options(tmp_path / "fit").size == size
