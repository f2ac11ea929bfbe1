"""Larger images for small objects, where a training begins from a small pretrained network."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from twostage.data.dataset import Dataset
from twostage.detector import Detector
from twostage.models.image import ImageConfig
from twostage.models.zoo import named
from twostage.training import run, train
from twostage.training.cross_fitting import cross_fit
from twostage.training.folder import read_options
from twostage.training.image_size import suitable_size, with_image_size
from twostage.training.options import TrainOptions
from twostage.training.step import Session
from twostage.weights.file import Card, save_weights

LITE = TrainOptions(Path("data"), weights="efficientnet_lite0-imagenet")


def squares(*images: Sequence[float], labels: Sequence[int] | None = None, names: Sequence[str] = ("a",)) -> Dataset:
    """Images of 320 x 320 pixels, each with one square of every side; the classes are the same in all images."""
    samples = []
    for sides in images:
        boxes = [[4.0 * place, 8.0, 4.0 * place + side, 8.0 + side] for place, side in enumerate(sides)]
        image = np.full((320, 320, 3), 90, np.uint8)
        of_classes = np.zeros(len(sides), np.int64) if labels is None else np.array(labels)
        samples.append((image, np.array(boxes).reshape(-1, 4), of_classes))
    return Dataset.from_samples(samples, names)


@pytest.mark.parametrize(("side", "size"), [(100, 320), (24, 320), (20, 384), (12.5, 640), (3, 640)])
def test_the_median_object_has_24_pixels_up_to_twice_the_size(side: float, size: int) -> None:
    assert with_image_size(LITE, squares([side])).size == size


def test_it_is_of_the_median_object_that_is_trained_on() -> None:
    assert with_image_size(LITE, squares([8, 30, 90])).size == 320
    assert with_image_size(LITE, replace(squares([16, 90, 90]), difficult=np.array([False, True, True]))).size == 480


@pytest.mark.parametrize(("large", "size"), [(90, 640), (120, 480), (170, 320), (200, 320)])
def test_large_objects_of_another_class_stay_within_reach_of_the_anchors(large: float, size: int) -> None:
    """The largest has 128 px, and an IoU of 0.5 with a square of 181 px."""
    dataset = squares([12] * 20 + [large], labels=[0] * 20 + [1], names=("small", "large"))
    assert with_image_size(LITE, dataset).size == size


def test_a_few_large_objects_of_a_class_do_not_limit_it() -> None:
    assert with_image_size(LITE, squares([12] * 19 + [200])).size == 640


@pytest.mark.parametrize(("model", "size"), [("faster_rcnn_resnet50_fpn", 800), ("faster_rcnn_vgg16", 640)])
def test_it_is_640_at_most(model: str, size: int) -> None:
    assert suitable_size(named(model), (), squares([3])) == size


def test_without_objects_it_is_the_models() -> None:
    assert with_image_size(LITE, squares([])).size == 320


@pytest.mark.parametrize(
    "given",
    [
        {"size": 256},
        {"max_size": 500},
        {"model_fields": {"image.size": 256}},
        {"model_fields": {"image_size": 256}},
        {"model_fields": {"image_max_size": 500}},
        {"model_fields": {"anchor_sizes": [[8], [16], [32], [64]]}},
        {"model_fields": {"anchors.sizes": [[8], [16], [32], [64]]}},
        {"backbone": "timm:resnet18"},
        {"recipe": "finetune"},
        {"weights": "none"},
        {"model": "faster_rcnn_tiny_fpn", "weights": None},
        {"model": "faster_rcnn_resnet50_fpn", "weights": None},
    ],
)
def test_a_size_that_is_given_stays_and_other_recipes_have_their_own(given: dict[str, Any]) -> None:
    options = replace(LITE, **given)
    assert with_image_size(options, squares([12])) == options


def test_a_detector_keeps_its_size_and_one_of_another_model_has_none(tmp_path: Path) -> None:
    weights = tmp_path / "detector.safetensors"
    save_weights(weights, {}, Card("faster_rcnn_lite0_fpn", ("square",), named("faster_rcnn_lite0_fpn")))
    options = replace(LITE, weights=str(weights))
    assert with_image_size(options, squares([12])) == options
    assert with_image_size(replace(options, model="mask_rcnn_lite0_fpn"), squares([12])).size == 640


def test_a_run_keeps_the_size_when_it_is_resumed(tmp_path: Path) -> None:
    """Though its labels have other sizes then."""
    first = train(squares([18, 18]), epochs=1, val=squares([18]), out=tmp_path / "run", quiet=True)
    assert read_options(tmp_path / "run").size == 448
    assert cast(ImageConfig, Detector.load(first["weights"]).model.config.image).size == 448
    train(squares([30, 30]), val=squares([30]), resume=tmp_path / "run", quiet=True)
    assert read_options(tmp_path / "run").size == 448


@pytest.mark.parametrize(("seconds", "size"), [(0.0043, 320), (0.0042, 480)])
def test_a_time_budget_of_few_steps_keeps_the_models(
    seconds: float, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """1.2 seconds are 250 steps of 2 images, half the recipe's, where one of 4 takes 9.6 milliseconds."""
    sizes = []

    def timed(session: Session, *_: object) -> float:
        sizes.append(cast(ImageConfig, session.model.config.image).size)
        return seconds * (sizes[-1] / 320) ** 2

    monkeypatch.setattr(run, "seconds_of_step", timed)
    with caplog.at_level(logging.INFO, "twostage"):
        done = train(squares([16, 16]), val=squares([16]), minutes=0.02, out=tmp_path / "run", quiet=True)
    assert sizes == ([480] if size == 480 else [480, 320])
    assert read_options(tmp_path / "run").size == size
    assert cast(ImageConfig, Detector.load(done["weights"]).model.config.image).size == size
    assert ("too little time on this machine for larger images" in caplog.text) == (size == 320)
    assert ("16 px at the model's size 320, and 24 px at 480" in caplog.text) == (size == 480)
    assert caplog.text.count("recipe finetune_small: adamw") == 1
    # So too with a batch that is given, of which 125 and 127 steps fit.
    train(squares([16, 16]), val=squares([16]), minutes=0.02, batch=4, out=tmp_path / "given", quiet=True)
    assert read_options(tmp_path / "given").size == 320
    assert read_options(tmp_path / "given").batch == 4


@pytest.mark.slow
def test_folds_have_the_size_of_the_first(tmp_path: Path) -> None:
    """Not each that of its own images, of which the median object may have another size; of the learned classes."""
    alone = [with_image_size(LITE, squares(*pair)).size for pair in (([16], [18]), ([16], [90]), ([18], [90]))]
    assert alone == [480, 320, 320]
    dataset = squares(*([side, 90] for side in (16, 18, 90)), labels=[0, 1], names=("small", "large"))
    options: dict[str, Any] = {"folds": 3, "names": ("small",), "epochs": 1, "quiet": True}
    train(dataset, out=tmp_path / "run", **options)
    cross_fit(dataset, TrainOptions(Path("data"), out=tmp_path / "fit", **options))
    assert read_options(tmp_path / "run" / "fold-1").size == read_options(tmp_path / "fit" / "fold-1").size
    for folder in ("run/fold-1", "run/fold-2", "run/fold-3", "run/all", "fit/fold-1", "fit/fold-2", "fit/fold-3"):
        assert read_options(tmp_path / folder).size == read_options(tmp_path / "run" / "fold-1").size
