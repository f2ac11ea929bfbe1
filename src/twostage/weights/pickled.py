"""Weights of other formats (.pth, .pt, .pkl, .caffemodel) become files of ours."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twostage.errors import DataError, UsageError, nearest
from twostage.models.build import build
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.weights.caffemodel import is_caffemodel, read_caffemodel
from twostage.weights.efficientnet_lite import from_published, is_published
from twostage.weights.file import Card, save_tensors, save_weights, sha256
from twostage.weights.fit import load_all
from twostage.weights.importers.python_config import parse_python_config
from twostage.weights.importers.torchvision import from_torchvision
from twostage.weights.importers.yaml_config import parse_yaml_config
from twostage.weights.pickle_reader import load_pickle

log = logging.getLogger("twostage.weights")

WRAPPERS = ("model", "state_dict", "model_state_dict")
_AVERAGED = ("model_ema", "ema", "ema_state_dict", "ema_model")


class Checkpoint(NamedTuple):
    """What a pickle holds of a network: its state dict, and where a training left them its classes and its settings.

    `others` are the entries beside it with further copies of the weights, such as their moving average.
    """

    path: Path
    state: dict[str, Tensor]
    names: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    others: tuple[str, ...] = ()


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """A state dict, also one that a training script wrapped, or its entry `key`. Runs no code of the file.

    Raises MissingError when there is none, DataError when it is no state dict or holds more than tensors.
    """
    content: Any = read_caffemodel(path) if is_caffemodel(path) else load_pickle(path)
    names, settings = _meta(content.get("meta")) if isinstance(content, Mapping) else ((), None)
    if isinstance(content, Mapping) and _of_simple_faster_rcnn(content.get("config")):
        settings = content["config"]
    if isinstance(content, Mapping) and isinstance(content.get("blobs"), Mapping):
        settings = _of_detectron(path, content.get("cfg"))
        content = _without_momentum(content["blobs"])
    others: tuple[str, ...] = ()
    if key is not None:
        if not isinstance(content, Mapping) or not isinstance(content.get(key), Mapping):
            held = content if isinstance(content, Mapping) else {}
            entries = [str(name) for name, value in held.items() if isinstance(value, Mapping)]
            raise DataError(f"{path}: has no entry {key!r} with weights. {nearest(key, entries)}")
        content = content[key]
    elif isinstance(content, Mapping):
        others = tuple(name for name in _AVERAGED if isinstance(content.get(name), Mapping))
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = Tensor | np.ndarray
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, tensors) for v in content.values()):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a state dict of tensors.")
    state = {str(name).removeprefix("module."): _tensor(path, str(name), value) for name, value in content.items()}
    return Checkpoint(path, state, names, settings, others)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict. Raises as `read_checkpoint`."""
    return read_checkpoint(path).state


def _tensor(path: Path, name: str, value: Tensor | np.ndarray) -> Tensor:
    """A plain tensor; numbers of any precision in float32, as the models have. Raises DataError for another kind."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise DataError(f"{path}: {name} is an array of {value.dtype}, not of numbers.")
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an array from a pickle cannot be written to; nothing does
            value = torch.from_numpy(native)
    if value.layout != torch.strided or value.is_quantized:
        raise DataError(
            f"{path}: {name} is a {'quantised' if value.is_quantized else 'sparse'} tensor: save plain ones."
        )
    plain = value.detach()
    return plain.float() if plain.is_floating_point() else plain


def _meta(meta: Any) -> tuple[tuple[str, ...], Mapping[str, Any] | None]:
    """The classes and settings that mmdetection leaves beside the weights: by version 2 and version 3."""
    if not isinstance(meta, Mapping):
        return (), None
    of_data = meta.get("dataset_meta")
    names = meta.get("CLASSES") or (of_data.get("classes") if isinstance(of_data, Mapping) else None)
    text = meta.get("cfg") or meta.get("config")
    try:
        settings = parse_python_config(text) if isinstance(text, str) else None
    except DataError as error:
        log.warning("%s: the published defaults are assumed. Give --config with the right one.", error)
        settings = None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = ()
    return tuple(names), settings


def _of_detectron(path: Path, text: Any) -> Mapping[str, Any] | None:
    """The settings that Detectron leaves beside its blobs."""
    try:
        return parse_yaml_config(text) if isinstance(text, str) else None
    except DataError as error:
        log.warning("%s: %s The published defaults are assumed: give --config with the right ones.", path, error)
        return None


def _without_momentum(blobs: Mapping[Any, Any]) -> dict[str, Any]:
    """The weights among Detectron's blobs."""
    return {
        str(name): value
        for name, value in blobs.items()
        if isinstance(value, Tensor | np.ndarray) and value.ndim and not str(name).endswith("_momentum")
    }


def _of_simple_faster_rcnn(config: Any) -> bool:
    """Whether these are the options that its training leaves beside the weights."""
    return isinstance(config, Mapping) and "caffe_pretrain" in config


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
    origin: Mapping[str, str] | None = None,
    **fields: Any,
) -> None:
    """A torchvision detector's pickle as a weights file of ours.

    Raises UsageError for an unknown model, or names that are not different, DataError where the weights are not that
    model's or of other classes.
    """
    require_different(names)
    config = configure(named(model), fields)
    state = from_torchvision(read_pickle(path), len(names))
    detector = build(config, len(names))
    load_all(detector, state, str(path))
    found = origin_of(path, "torchvision", origin)
    card = Card(model, tuple(names), config, dict(metrics or {}), licence, origin=found)
    save_weights(out, detector.state_dict(), card)


def require_different(names: Sequence[str]) -> None:
    """Raises UsageError for classes that no weights file may have: two of one name, or one without a name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        wrong = f"{twice[0]!r} comes twice" if twice else "one is empty"
        raise UsageError(f"the names of the classes have to be different, and {wrong}: give --names, each once")


def origin_of(path: Path, project: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where converted weights come from, as their header has it."""
    made = {"made by": "twostage weights convert", "project": project, "file": path.name, "sha256": sha256(path)}
    return made | dict(more or {})


def coco_names() -> tuple[str, ...]:
    """The 80 classes of COCO's detection task, as torchvision lists them beside its weights."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    listed = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in listed[1:] if name != "N/A")
