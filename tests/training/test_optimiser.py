from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectors import make_model
from torch import Tensor, nn

from twostage.models.build import build
from twostage.models.zoo import named
from twostage.training import train
from twostage.training.optimiser import backbone_stages, build_optimizer, freezable_stages, freeze, whole_stages
from twostage.training.options import TrainOptions
from twostage.training.recipe import SCRATCH
from twostage.weights.file import load_tensors


def test_rates_fall_from_the_heads_to_the_image() -> None:
    model = make_model("faster_rcnn_tiny_fpn", 2, head_channels=8)
    optimizer = build_optimizer(model, replace(SCRATCH, layer_decay=0.5))
    rate_of = {id(p): group["rate"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate_of) == len(list(model.parameters()))
    stages = [{rate_of[id(p)] for module in stage for p in module.parameters()} for stage in backbone_stages(model)]
    assert stages == [{0.5**5}, {0.5**4}, {0.5**3}, {0.5**2}, {0.5}]
    assert {rate_of[id(p)] for part in (model.rpn, model.head, model.backbone.laterals) for p in part.parameters()} == {
        1
    }


def test_matrices_alone_are_decayed_and_frozen_stages_left_out() -> None:
    model = make_model("faster_rcnn_tiny_fpn", 2, head_channels=8)
    freeze(model, 2)
    groups = build_optimizer(model, SCRATCH).param_groups
    assert [group["weight_decay"] for group in groups] == [SCRATCH.weight_decay, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_moves_early_layers_less(optimizer: str, scenes: Path, tmp_path: Path) -> None:
    """With a decay of next to nothing the last stage hardly moves, and the heads do."""
    options = TrainOptions(
        scenes,
        model="faster_rcnn_tiny_fpn",
        val_split="none",
        size=64,
        epochs=1,
        batch=8,
        ema=0.0,
        optimizer=optimizer,
        weight_decay=0.0,
        workers=0,
        quiet=True,
        out=tmp_path / "all",
    )
    _, before = load_tensors(Path(train(replace(options, lr=1e-12))["weights"]))
    _, after = load_tensors(Path(train(replace(options, out=tmp_path / "decayed", layer_decay=1e-9))["weights"]))
    moved = {name: float((after[name] - tensor).abs().max()) for name, tensor in before.items() if "weight" in name}
    body = [value for name, value in moved.items() if name.startswith("backbone.body.") and before[name].ndim == 4]
    assert max(body) < 1e-7 < 1e-5 < moved["rpn.objectness.weight"]
    assert torch.isfinite(after["rpn.objectness.weight"]).all()


class Turning(nn.Module):
    """A network of two stages, of which the first has two tables, one of them computed and not saved, as rotary
    embeddings are."""

    channels, strides = (8,), (16,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 16, 16), nn.Conv2d(8, 8, 1)
        self.first.register_buffer("table", torch.ones(8), persistent=False)
        self.first.embedding = nn.Parameter(torch.zeros(1, 8, 1, 1))

    def get_stages(self) -> list[list[nn.Module]]:
        return [[self.first], [self.second]]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.first.table[:, None, None] + self.first.embedding)


def test_a_stage_is_whole_without_the_buffers_that_no_file_holds() -> None:
    """Those of SwinV2, DINOv3 and EVA-02 in timm."""
    model = build(named("faster_rcnn_tiny"), 2, Turning())
    loaded = [name for name in model.state_dict() if "first" in name]
    assert whole_stages(model, loaded) == 1
    assert whole_stages(model, list(model.state_dict())) == 2
    assert whole_stages(model, loaded[1:]) == 0


def test_a_recipe_fixes_whole_stages_and_never_the_last() -> None:
    """A network of one stage was frozen as a whole, such as HRNet of timm."""
    model = build(named("faster_rcnn_tiny"), 2, Turning())
    assert freezable_stages(model, list(model.state_dict())) == 1
    assert freezable_stages(model, []) == 0


def test_tables_of_positions_are_not_decayed() -> None:
    model = build(named("faster_rcnn_tiny"), 2, Turning())
    groups = build_optimizer(model, SCRATCH).param_groups
    name_of = {id(p): name for name, p in model.named_parameters()}
    decayed, others = ({name_of[id(p)] for p in group["params"]} for group in groups)
    assert decayed | others == set(name_of.values())
    assert decayed == {name for name in name_of.values() if name.endswith(".weight")}
    assert "backbone.module.first.embedding" in others


def test_weights_of_other_names_are_decayed() -> None:
    """Of a module of the user's, with weight normalisation."""
    model = make_model("faster_rcnn_tiny_fpn", 2, head_channels=8)
    model.backbone.own = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3))
    model.backbone.memory = nn.LSTM(2, 3)
    decayed, others = ({id(p) for p in group["params"]} for group in build_optimizer(model, SCRATCH).param_groups)
    weight = model.backbone.own.parametrizations.weight  # type: ignore[union-attr]
    assert {id(weight.original1), id(model.backbone.memory.weight_ih_l0)} <= decayed
    assert {id(model.backbone.own.bias), id(model.backbone.memory.bias_ih_l0)} <= others
