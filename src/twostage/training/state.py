"""Everything a run needs to resume exactly where it stopped, in one safetensors file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from twostage.errors import DataError
from twostage.models.build import Model
from twostage.models.one_stage import OneStage
from twostage.training.ema import EMA
from twostage.weights.file import head_named, load_tensors, save_tensors
from twostage.weights.fit import load_all


@dataclass
class Progress:
    """Where a run stands. `total` is the number of steps, None until a time budget has been turned into one; `lr` is
    that of the last step. The run ends after the share `until` of it, with the learning rate of the whole.

    `warmup` and `warmup_seconds` are the steps a time budget had for warming up and their time; `corrected` says that
    `total` was corrected halfway. `seconds` is the time spent in steps, `losses` the sums over `summed` steps since
    the last epoch's end.
    """

    step: int = 0
    lr: float = 0.0
    total: int | None = None
    until: float = 1.0
    warmup: int | None = None
    warmup_seconds: float = 0.0
    corrected: bool = False
    seconds: float = 0.0
    best: float = -1.0
    validations_since_best: int = 0
    durations: list[float] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    images: int = 0  # of the split that is learned

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.last is not None and self.step >= self.last

    @property
    def last(self) -> int | None:
        """The step after which the run ends, once that has been decided."""
        return None if self.total is None else max(1, round(self.until * self.total))


def save_state(
    path: Path,
    model: Model,
    optimizer: Optimizer,
    ema: EMA[Model] | None,
    progress: Progress,
    scaler: dict[str, Any],
) -> None:
    """Write the state; complete or not at all."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"average.{name}": t for name, t in ema.model.state_dict().items()}
    for name, parameter in model.named_parameters():
        slots = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{slot}": t for slot, t in slots.items() if isinstance(t, Tensor)}
    content = {"progress": asdict(progress), "updates": ema.updates if ema else 0, "scaler": scaler}
    save_tensors(path, tensors, {"twostage-state": json.dumps(content)})


def load_state(
    path: Path, model: Model, optimizer: Optimizer, ema: EMA[Model] | None
) -> tuple[Progress, dict[str, Any]]:
    """Put a saved state back; returns the progress and the gradient scaler's state.

    Raises DataError when the file is not the state of such a run.
    """
    metadata, tensors = load_tensors(path)
    if "twostage-state" not in metadata:
        raise DataError(f"{path}: not the state of a training run.")
    content = json.loads(metadata["twostage-state"])
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    if isinstance(model, OneStage):
        parts |= {part: head_named(parts[part]) for part in ("model", "average")}
    load_all(model, parts["model"], str(path))
    if ema is not None:
        load_all(ema.model, parts["average"], str(path))
        ema.updates = content["updates"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    place_of = {id(p): place for place, p in enumerate(parameters)}
    named = dict(model.named_parameters()) | {str(place): p for place, p in enumerate(_numbered(model, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        whose, slot = name.rsplit(".", 1)
        own = named[whose]
        # A fused optimizer walks parameter and state side by side in memory: both must be laid out alike. And nothing
        # may stay mapped to the file, which the next state replaces.
        laid_out = torch.empty_like(own).copy_(tensor) if tensor.shape == own.shape else tensor.clone()
        state.setdefault(place_of[id(own)], {})[slot] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**content["progress"]), content["scaler"]


def _numbered(model: Model, optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters in the order by which states of before 2026-11-30 number them: all matrices were decayed then."""
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    order: list[nn.Parameter] = []
    for decayed, others in zip(groups[::2], groups[1::2], strict=True):  # of one learning rate
        own = [p for p in model.parameters() if id(p) in decayed | others]
        order += [*(p for p in own if p.ndim > 1), *(p for p in own if p.ndim <= 1)]
    return order
