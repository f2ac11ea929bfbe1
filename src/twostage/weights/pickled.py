"""Pickled weights (.pth, .pt, .pkl) become files of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twostage.errors import DataError
from twostage.models.build import build
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.weights.efficientnet_lite import from_published, is_published
from twostage.weights.file import Card, save_tensors, save_weights
from twostage.weights.fit import load_all
from twostage.weights.pickle_reader import load_pickle
from twostage.weights.torchvision import from_torchvision

WRAPPERS = ("model", "state_dict", "model_state_dict")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, also of one that a training script wrapped. Runs no code of the file.

    Raises MissingError when there is none, DataError when it is no state dict or holds more than tensors.
    """
    content = load_pickle(path)
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = Tensor | np.ndarray
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, tensors) for v in content.values()):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a state dict of tensors.")
    return {str(name).removeprefix("module."): torch.as_tensor(value).detach() for name, value in content.items()}


def convert_backbone(path: Path, out: Path) -> None:
    """A classification network's pickle as safetensors, for `train --weights`. Raises as `read_pickle`."""
    state = read_pickle(path)
    save_tensors(out, from_published(state) if is_published(state) else state)


def convert_detector(
    path: Path,
    out: Path,
    model: str,
    names: Sequence[str],
    *,
    licence: str = "unknown",
    metrics: Mapping[str, float] | None = None,
    **fields: Any,
) -> None:
    """A torchvision detector's pickle as a weights file of ours.

    Raises UsageError for an unknown model, DataError where the weights are not that model's or of other classes.
    """
    config = configure(named(model), fields)
    state = from_torchvision(read_pickle(path), len(names))
    detector = build(config, len(names))
    load_all(detector, state, str(path))
    card = Card(model, tuple(names), config, dict(metrics or {}), licence)
    save_weights(out, detector.state_dict(), card)


def coco_names() -> tuple[str, ...]:
    """The 80 classes of COCO's detection task, as torchvision lists them beside its weights."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    listed = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in listed[1:] if name != "N/A")
