"""What is kept of a run, and of runs that other versions have begun."""

import json
from pathlib import Path

import pytest
import torch
from detectors import make_model
from torch import nn
from torch.optim import AdamW

from twostage.training.optimiser import build_optimizer
from twostage.training.recipe import SCRATCH
from twostage.training.state import Progress, load_state, save_state
from twostage.weights.file import save_tensors


@pytest.mark.parametrize("written", ["now", "before 2026-11-30"])
def test_each_parameter_gets_its_own_moments_back(written: str, tmp_path: Path) -> None:
    """States were numbered by groups, and tables of positions have moved from one to the other."""
    model, path = make_model("faster_rcnn_tiny_fpn", 2, head_channels=8), tmp_path / "state.safetensors"
    model.backbone.positions = nn.Parameter(torch.zeros(1, 8, 4, 4))
    parameters = list(model.parameters())
    optimizer = build_optimizer(model, SCRATCH)
    if written != "now":
        matrices, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        optimizer = AdamW([{"params": matrices}, {"params": others}])
    for number, parameter in enumerate(parameters, 1):
        parameter.grad = torch.full_like(parameter, number)
    optimizer.step()
    if written == "now":
        save_state(path, model, optimizer, None, Progress(step=1), {})
    else:
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for number, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{slot}": tensor for slot, tensor in slots.items()}
        content = {"progress": {"step": 1}, "updates": 0, "scaler": {}}
        save_tensors(path, tensors, {"twostage-state": json.dumps(content)})
    resumed = build_optimizer(model, SCRATCH)
    assert load_state(path, model, resumed, None)[0].step == 1
    for number, parameter in enumerate(parameters, 1):
        moment = resumed.state[parameter]["exp_avg"]
        torch.testing.assert_close(moment, torch.full_like(parameter, 0.1 * number))
