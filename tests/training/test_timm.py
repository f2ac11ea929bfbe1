"""Training around a network of timm, from its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor

from twostage.errors import DataError
from twostage.models.backbones.timm import TimmConfig
from twostage.training import train
from twostage.training.options import TrainOptions
from twostage.weights.file import load_weights


@pytest.fixture
def options(scenes: Path, tmp_path: Path) -> TrainOptions:
    """One epoch around a small network of timm."""
    return TrainOptions(
        scenes,
        model="faster_rcnn_tiny_fpn",
        backbone="timm:test_convnext",
        val_split="none",
        size=64,
        epochs=1,
        batch=8,
        workers=0,
        quiet=True,
        out=tmp_path / "run",
    )


@pytest.mark.parametrize("source", ["hub", "file"])
def test_a_run_begins_from_them_and_names_their_licence(
    timm_hub: dict[str, Tensor], source: str, options: TrainOptions, tmp_path: Path
) -> None:
    if source == "file":
        save_file(timm_hub, tmp_path / "own.safetensors")
        options = replace(options, weights=str(tmp_path / "own.safetensors"))
    card, state = load_weights(Path(train(options)["weights"]))
    assert (state["backbone.body.module.net.stem_0.weight"] == timm_hub["stem.0.weight"]).all()
    assert "apache-2.0 of timm's test_convnext" in card.licence


def test_random_weights_have_no_licence_of_timm(options: TrainOptions) -> None:
    card, _ = load_weights(Path(train(replace(options, weights="none"))["weights"]))
    assert card.licence == "as the training data allow"


def test_a_file_of_another_network_is_named(
    timm_hub: dict[str, Tensor], scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By one message: timm's own list all tensors."""
    save_file(timm_hub, tmp_path / "own.safetensors")
    options = TrainOptions(scenes, backbone="timm:test_resnet", weights=str(tmp_path / "own.safetensors"), quiet=True)
    with pytest.raises(DataError, match=r"own\.safetensors: these are not the tensors of timm's test_resnet"):
        train(options)
    assert "Unexpected keys" not in caplog.text


def test_fields_of_the_network_of_timm_are_given_to_its_model(options: TrainOptions) -> None:
    """Its own `backbone.name`, which the model without it does not have."""
    fields = {"backbone.name": "test_convnext"}
    card, _ = load_weights(Path(train(replace(options, weights="none", model_fields=fields))["weights"]))
    assert card.config.backbone == TimmConfig("test_convnext")
