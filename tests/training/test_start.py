"""What a run begins from."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectors import make_model
from safetensors.torch import save_file
from torch import Tensor, nn

from twostage.errors import DataError, UsageError
from twostage.models.build import Model
from twostage.training import start, train
from twostage.training.options import TrainOptions
from twostage.training.start import starting_model, with_default_weights
from twostage.weights.file import Card, load_weights, save_weights

MEAN = (0.5, 0.4, 0.3)


@pytest.mark.parametrize("given", [{"norm": "group"}, {"norm_eps": 0.1}, {"mean": MEAN}])
@pytest.mark.parametrize("model", ["cascade_rcnn_lite0_fpn", "retinanet_lite0_fpn", "faster_rcnn_lite0_fpn"])
def test_another_model_computes_the_maps_of_the_backbone_that_it_takes(model: str, given: dict, tmp_path: Path) -> None:
    """Weights of GroupNorm in a frozen BatchNorm, whose statistics they do not have, made every map next to 0."""
    first = make_model("faster_rcnn_lite0_fpn", 2, head_channels=8, **given).eval()
    file = tmp_path / "first.safetensors"
    save_weights(file, first.state_dict(), Card("faster_rcnn_lite0_fpn", ("a", "b"), first.config))
    options = TrainOptions(Path("data"), model=model, weights=str(file))
    second = starting_model(options, ("a", "b")).model.eval()
    image = torch.rand(1, 3, 64, 64)
    for one, other in zip(first.backbone.body(image), second.backbone.body(image), strict=True):
        torch.testing.assert_close(other, one)
    assert second.config.image.mean == first.config.image.mean


def test_fields_that_are_given_win_over_those_of_the_weights(tmp_path: Path) -> None:
    first = make_model("faster_rcnn_lite0_fpn", 2, head_channels=8, norm="group", mean=MEAN)
    file = tmp_path / "first.safetensors"
    save_weights(file, first.state_dict(), Card("faster_rcnn_lite0_fpn", ("a", "b"), first.config))
    fields = {"norm": "batch", "mean": [0.1, 0.2, 0.3]}
    options = TrainOptions(Path("data"), model="cascade_rcnn_lite0_fpn", weights=str(file), model_fields=fields)
    config = starting_model(options, ("a", "b")).model.config
    assert config.backbone.norm.kind == "batch"
    assert config.image.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("card", [True, False])
def test_blocks_that_a_shallower_network_leaves_random_are_refused(tmp_path: Path, card: bool) -> None:
    """They have frozen statistics that were never measured."""
    first = make_model("faster_rcnn_lite0_fpn", 2, head_channels=8)
    options = replace(_beginning_from(first, "faster_rcnn_lite0_fpn", tmp_path), model="faster_rcnn_lite1_fpn")
    if not card:
        save_file(first.backbone.body.state_dict(), tmp_path / "first.safetensors")
    with pytest.raises(DataError, match=r"another than that of faster_rcnn_lite1_fpn.*stages\.1\.2 the first of"):
        starting_model(options, ("a", "b"))


def test_a_detector_of_a_deeper_network_is_refused(tmp_path: Path) -> None:
    """All that Lite0 has is in Lite1, with other blocks in between."""
    first = make_model("faster_rcnn_lite1_fpn", 2, head_channels=8)
    options = replace(_beginning_from(first, "faster_rcnn_lite1_fpn", tmp_path), model="faster_rcnn_lite0_fpn")
    with pytest.raises(DataError, match=r"more layers than that of.*Choose faster_rcnn_lite1_fpn by --model"):
        starting_model(options, ("a", "b"))


def test_heads_may_be_deeper_than_those_of_the_file(tmp_path: Path) -> None:
    first = make_model("hybrid_task_cascade_tiny_fpn", 2, semantic_classes=3)
    options = _beginning_from(first, "hybrid_task_cascade_tiny_fpn", tmp_path)
    options = replace(options, model_fields={"mask.tower.convs": 6, "semantic.classes": 3})
    loaded = starting_model(options, ("a", "b")).loaded
    assert {name for name in first.state_dict() if name.startswith("backbone.")} <= loaded


@pytest.mark.parametrize(
    ("file", "model", "message"),
    [
        ("frozen", "group", "has batch normalisation, and the model another"),
        ("batch", "layer", "has batch normalisation, and the model another"),
        ("group", "frozen", "has another normalisation, and the model frozen batch normalisation"),
        ("group", "layer", "has group normalisation, and the model layer"),
    ],
)
def test_scale_and_shift_of_another_normalisation_are_refused(
    tmp_path: Path, file: str, model: str, message: str
) -> None:
    """They have the same names and shapes: the first stage counted as loaded whole and was frozen."""
    first = make_model("faster_rcnn_lite0_fpn", 2, head_channels=8, norm=file)
    options = replace(_beginning_from(first, "faster_rcnn_lite0_fpn", tmp_path), model_fields={"norm": model})
    with pytest.raises(UsageError, match=f"{message}.*Change model.norm"):
        starting_model(options, ("a", "b"))


def test_the_weights_of_a_package_are_those_of_the_variant_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lite0's were loaded into Lite1."""
    monkeypatch.setattr(start, "find_weights", lambda name: Path(name))
    options = TrainOptions(Path("data"), model="faster_rcnn_lite0_fpn", model_fields={"backbone.variant": 1})
    assert with_default_weights(options).weights == "efficientnet_lite1-imagenet"


@pytest.mark.parametrize("fixed", [{"freeze": 2}, {"learn": ("rpn", "head")}])
def test_what_is_frozen_with_random_weights_is_named(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, fixed: dict
) -> None:
    options = TrainOptions(scenes, model="faster_rcnn_tiny_fpn", val_split="none", size=64, epochs=1, batch=8)
    options = replace(options, workers=0, quiet=True, **fixed)
    train(replace(options, out=tmp_path / "a"))
    assert "random weights, which stay random" in caplog.text
    caplog.clear()
    train(replace(options, weights=str(tmp_path / "a/weights/last.safetensors"), out=tmp_path / "b"))
    assert "stay random" not in caplog.text


def test_a_pyramid_that_is_frozen_and_random_is_named(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights of a classification network have none."""
    save_file(make_model("faster_rcnn_tiny_fpn", 1).backbone.body.state_dict(), tmp_path / "net.safetensors")
    options = TrainOptions(scenes, model="faster_rcnn_tiny_fpn", weights=str(tmp_path / "net.safetensors"), size=64)
    options = replace(options, learn=("rpn", "head"), val_split="none", epochs=1, batch=8, workers=0, quiet=True)
    train(replace(options, out=tmp_path / "run"))
    assert "which stay random: " in caplog.text
    assert "(backbone.laterals.0.0 the first)" in caplog.text


class Net(nn.Module):
    """A network of its own weights, in one stage."""

    channels, strides = (8,), (16,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_a_module_that_is_given_is_named_as_the_origin_and_fine_tuned(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights were called random, and all of it was frozen where it began from weights."""
    options = {"model": "faster_rcnn_tiny", "size": 64, "epochs": 1, "batch": 8, "workers": 0, "quiet": True}
    options |= {"val_split": "none", "backbone": Net()}
    with caplog.at_level(logging.INFO, "twostage"):
        first = train(scenes, out=tmp_path / "a", **options)
    assert "from the module's own weights, Net, recipe" in caplog.text
    assert "random weights" not in caplog.text
    card, before = load_weights(Path(first["weights"]))
    assert card.origin["started from"] == "the module's own weights, Net"
    assert card.licence == "as the training data allow, and that of the weights of Net"
    second = train(scenes, out=tmp_path / "b", weights=first["weights"], **options)
    _, after = load_weights(Path(second["weights"]))
    assert not torch.equal(after["backbone.module.conv.weight"], before["backbone.module.conv.weight"])


def _beginning_from(model: Model, name: str, folder: Path) -> TrainOptions:
    """The options to train the same model from a file of these weights."""
    file = folder / "first.safetensors"
    save_weights(file, model.state_dict(), Card(name, ("a", "b"), model.config))
    return TrainOptions(Path("data"), model=name, weights=str(file))
