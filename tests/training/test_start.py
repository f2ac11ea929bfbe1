"""What a run begins from."""

from pathlib import Path

import pytest
import torch
from detectors import make_model

from twostage.training.options import TrainOptions
from twostage.training.start import starting_model
from twostage.weights.file import Card, save_weights

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


def test_another_network_stays_as_the_model_has_it(tmp_path: Path) -> None:
    """Lite0's in Lite1, whose first blocks alone take tensors."""
    first = make_model("faster_rcnn_lite0_fpn", 2, head_channels=8, norm="group")
    file = tmp_path / "first.safetensors"
    save_weights(file, first.state_dict(), Card("faster_rcnn_lite0_fpn", ("a", "b"), first.config))
    options = TrainOptions(Path("data"), model="faster_rcnn_lite1_fpn", weights=str(file))
    assert starting_model(options, ("a", "b")).model.config.backbone.norm.kind == "frozen"
