"""A detector's weights of another project become a file of ours; what they do not show is said."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twostage.errors import DataError, TwostageError, UsageError, nearest
from twostage.models.build import build
from twostage.models.component import leaves
from twostage.models.config import DetectorConfig, StagewiseConfig
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.weights.file import Card, save_weights
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.detectron import from_detectron, is_detectron
from twostage.weights.importers.detectron2 import from_detectron2, is_detectron2
from twostage.weights.importers.imported import Imported
from twostage.weights.importers.mmdetection import from_mmdetection, is_mmdetection
from twostage.weights.importers.py_faster_rcnn import from_py_faster_rcnn, is_py_faster_rcnn
from twostage.weights.importers.python_config import read_python_config
from twostage.weights.importers.simple_faster_rcnn import from_simple_faster_rcnn, is_simple_faster_rcnn
from twostage.weights.importers.torchvision import from_torchvision, import_torchvision, is_torchvision
from twostage.weights.importers.yaml_config import read_yaml_config
from twostage.weights.pickled import Checkpoint, coco_names, origin_of, read_checkpoint, require_different

log = logging.getLogger("twostage.weights")

Settings = Mapping[str, Any]


class Source(NamedTuple):
    """A project: which state dicts are its own, and how they and its settings are read."""

    recognise: Callable[[Mapping[str, Tensor]], bool]
    read: Callable[[Mapping[str, Tensor], Settings | None], Imported]
    settings: Callable[[Path], Settings] | None


SOURCES: dict[str, Source] = {
    "torchvision": Source(is_torchvision, lambda state, _: import_torchvision(state), None),
    "detectron2": Source(is_detectron2, from_detectron2, read_yaml_config),
    "mmdetection": Source(is_mmdetection, from_mmdetection, read_python_config),
    "detectron": Source(is_detectron, from_detectron, read_yaml_config),
    "py-faster-rcnn": Source(is_py_faster_rcnn, from_py_faster_rcnn, read_yaml_config),
    "simple-faster-rcnn": Source(is_simple_faster_rcnn, from_simple_faster_rcnn, read_yaml_config),
}

COCO = 80  # classes
# As Pascal VOC's development kit, detectron2, mmdetection and py-faster-rcnn list them.
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

# What can change a detection and no tensor shows.
_ASSUMED = (
    *("image", "anchors", "roi", "postprocess", "mask.tower.roi"),
    *("backbone.stride_in_1x1", "backbone.dilated", "backbone.pooling", "neck.extra", "semantic.averaged"),
    *(f"rpn.{name}" for name in ("top_test", "nms", "score_threshold", "edges", "clip_multiple")),
    *(f"rpn.{name}" for name in ("min_size", "min_size_of", "min_size_first")),
    *(f"{part}.delta_clamp{end}" for part in ("rpn", "box_head", "retinanet") for end in ("", "_two_sided")),
    *(f"{part}.delta_weights" for part in ("rpn", "stage", "cascade", "retinanet")),
    *("proposals.keep_test", "box_head.edges", "cascade.scores", "mask.paste", "mask.threshold"),
    *("retinanet.top", "retinanet.clip_before_nms"),
)
_OF_NORMS = (".norm.kind", ".norm.eps", ".norm.groups")  # of every part that has one


class Assumption(NamedTuple):
    """A value of the configuration that no tensor shows, and whether a file of settings said it."""

    path: str
    value: Any
    given: bool


class Converted(NamedTuple):
    """The header of the new file, the project that the weights came from, what they do not show, and where the classes
    have their names from."""

    card: Card
    source: str
    assumptions: list[Assumption]
    names_from: str


class Foreign(NamedTuple):
    """A checkpoint of another project, and the settings that were given with it or lie in it."""

    checkpoint: Checkpoint
    source: str
    settings: Settings | None


def foreign_of(checkpoint: Checkpoint, source: str, settings: Path | None = None) -> Foreign:
    """A checkpoint with the settings in a file of its project, by default those that lie in it."""
    return Foreign(checkpoint, source, _settings_of(SOURCES[source], source, settings) or checkpoint.settings)


def read_foreign(path: Path, key: str | None = None, settings: Path | None = None) -> Foreign:
    """A detector's checkpoint of a known project. Raises DataError for one of another, and as `read_checkpoint`."""
    checkpoint = read_checkpoint(path, key)
    source = recognise(checkpoint.state)
    if source is None:
        raise DataError(
            f"{path}: no detector of {', '.join(SOURCES)} by the names of its weights: "
            f"{', '.join(list(checkpoint.state)[:3])} ..."
        )
    return foreign_of(checkpoint, source, settings)


def num_classes_of(foreign: Foreign) -> int:
    """The number of classes of a checkpoint. Raises DataError for one that is no detector of its project."""
    try:
        return _read(SOURCES[foreign.source], foreign.source, foreign.checkpoint.state, foreign.settings).num_classes
    except DataError as error:
        raise DataError(f"{foreign.checkpoint.path}: {error}") from None


def recognise(state: Mapping[str, Tensor], source: str = "auto") -> str | None:
    """The project whose names a state dict has; None for one that is no detector of a known project.

    Raises UsageError for an unknown `source`.
    """
    if source != "auto":
        if source not in SOURCES:
            raise UsageError(f"Weights of {source!r} cannot be read. {nearest(source, SOURCES)}")
        return source
    return next((name for name, each in SOURCES.items() if each.recognise(state)), None)


def imported(
    state: Mapping[str, Tensor],
    source: str,
    num_classes: int,
    *,
    model: str | None = None,
    settings: str | Path | None = None,
) -> Imported:
    """The detector of a state dict with so many classes. Raises as `convert`."""
    project = SOURCES[recognise(state, source) or source]
    if model is not None and source == "torchvision":
        config = named(model)
        assert not isinstance(config, StagewiseConfig)
        return Imported(model, config, from_torchvision(state, num_classes), num_classes)
    found = _read(project, source, state, _settings_of(project, source, settings))
    _require_model(found, model)
    if found.num_classes != num_classes:
        raise DataError(
            f"The weights have {found.num_classes} classes, but {num_classes} names are given. "
            f"Give {found.num_classes} names."
        )
    return found


def _require_model(found: Imported, model: str | None) -> None:
    if model not in (None, found.model):
        raise DataError(f"The weights are those of {found.model}, not of {model}.")


def _settings_of(project: Source, name: str, path: str | Path | None) -> Settings | None:
    if path is None:
        return None
    if project.settings is None:
        raise UsageError(f"{name} has no files of settings: give fields of the model instead of {path}.")
    return project.settings(Path(path))


def convert(
    foreign: Foreign,
    out: Path,
    *,
    names: Sequence[str] = (),
    licence: str = "unknown",
    fields: Mapping[str, Any] | None = None,
    model: str | None = None,
    metrics: Mapping[str, float] | None = None,
    origin: Mapping[str, str] | None = None,
) -> Converted:
    """Write a detector's weights as a file of ours.

    Without settings what the project publishes is assumed. `names` are the classes, by default those of the checkpoint,
    or COCO's 80 or Pascal VOC's 20 for so many. `origin` is what is known of the file besides. Raises DataError where
    the weights are not a detector's of this project, not those of `model` where one is expected, are damaged or do not
    fit the settings, UsageError where the classes have to be named.
    """
    checkpoint, source, settings = foreign
    project, where = SOURCES[source], checkpoint.path
    require_numbers(checkpoint.state, where)
    try:
        found = _read(project, source, checkpoint.state, settings)
        _require_model(found, model)
        if settings and not found.given:
            log.warning("%s: nothing in its settings is one of %s's that are read.", where, source)
        config = configure(found.config, fields or {})
        classes, names_from = _names(tuple(names), checkpoint.names, found.num_classes)
        with Unfilled():
            detector = build(config, found.num_classes)
        load_all(detector, found.tensors, str(where), assign=True)
    except DataError as error:
        raise DataError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None
    card = Card(found.model, classes, config, dict(metrics or {}), licence, origin=origin_of(where, source, origin))
    save_weights(out, detector.state_dict(), card)
    return Converted(card, source, _assumptions(config, found.given | set(fields or {})), names_from)


def _read(project: Source, name: str, state: Mapping[str, Tensor], settings: Settings | None) -> Imported:
    """What the importer reads. Tensors and settings of an unforeseen kind are a DataError too."""
    try:
        return project.read(state, settings)
    except TwostageError:
        raise
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        what = "weights or settings" if settings else "weights"
        raise DataError(
            f"These {what} are not those of a detector of {name} that twostage has ({type(error).__name__}: {error})."
        ) from error


def require_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises DataError for a tensor that holds NaN or infinity: a training that diverged."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"{path}: {name} holds {count} values of {tensor.numel()} that are NaN or infinite: that training "
                "diverged. Take an earlier checkpoint."
            )


def _names(given: tuple[str, ...], stored: tuple[str, ...], num_classes: int) -> tuple[tuple[str, ...], str]:
    """The classes, and where their names come from."""
    published = {
        COCO: ("COCO's, by their number", coco_names),
        len(VOC): ("Pascal VOC's, by their number", lambda: VOC),
    }
    names, origin = (given, "as given") if given else (stored, "those of the file")
    if not names and num_classes in published:
        origin, of_data = published[num_classes]
        names = of_data()
    if len(names) != num_classes:
        said = f"{len(names)} names are given" if names else "the file does not name them"
        classes = f"{num_classes} class{'es' * (num_classes != 1)}"
        raise UsageError(f"the weights have {classes}, and {said}: give --names with {num_classes}, in order")
    require_different(names)
    return names, origin


def _assumptions(config: DetectorConfig, given: frozenset[str]) -> list[Assumption]:
    return [
        Assumption(leaf.path, leaf.value, bool(leaf.names & given))
        for leaf in leaves(config)
        if leaf.path.endswith(_OF_NORMS)
        or any(leaf.path == path or leaf.path.startswith(f"{path}.") for path in _ASSUMED)
    ]
