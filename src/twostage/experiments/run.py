"""`twostage lineage`: every detector of the family on one data set.

1. Selective search on all images. 2. One backbone, trained as a classifier of crops. 3. Every detector from there.
"""

import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.detections import Detections
from twostage.detector import Detector
from twostage.device import choose_device
from twostage.evaluation.evaluate import evaluate
from twostage.experiments import begin
from twostage.experiments.begin import Setting, load_or_make
from twostage.experiments.options import LineageOptions
from twostage.experiments.small import sppnet_model
from twostage.inference.timing import stage_times
from twostage.models.two_stage import TwoStage
from twostage.training.stagewise.fit import FitSettings
from twostage.training.stagewise.train import Bounds, train_stages
from twostage.training.stagewise.tune import TuneSettings

log = logging.getLogger("twostage.lineage")

_METRICS = ("AP", "AP50", "AP75", "voc07")

Trained = tuple[Path, float]
"""The weights of a trained detector, and the seconds that its own stages took."""


@dataclass
class Row:
    """The numbers of a detector: seconds of training of its own stages, and seconds per image at test.

    `proposals` are the seconds of proposing, `network` those of everything else except reading the image.
    """

    key: str
    name: str
    metrics: dict[str, float]
    train_seconds: float
    proposals: float
    network: float
    detail: str
    weights: str
    parts: dict[str, float] = field(default_factory=dict)


class Member(NamedTuple):
    """A detector of the family: its name, what it consists of, and its training into a folder."""

    name: str
    detail: str
    train: Callable[[Setting, Path], Trained]


def lineage(options: LineageOptions) -> dict[str, Any]:
    """Train, score and time the detectors; returns {"out", "backbone", "rows", "images", "settings", ...}.

    Raises MissingError without the extra `lineage`, and as `twostage.training.train`.
    """
    with begin.comparison(options, "lineage") as setting:
        options, root, train, val = setting.options, setting.root, setting.train, setting.val
        backbone = load_or_make(root / "rows" / "backbone.json", lambda: _backbone(setting))
        rows = []
        for key in options.parts:
            file = root / "rows" / f"{key}.json"
            if key not in options.only and not file.exists():
                continue
            log.info("%s", key)
            row = load_or_make(file, partial(_row, setting, key))
            rows.append(row)
            log.info("%s: AP50 %.3f, voc07 %.3f", row["name"], row["metrics"]["AP50"], row["metrics"]["voc07"])
    result = {
        "out": str(root),
        "data": str(train.root),
        "images": {"train": len(train), "val": len(val), "learned": min(options.learn_images, len(train))},
        "settings": {name: getattr(options, name) for name in ("size", "windows", "minutes", "seed")},
        "proposals_an_image": float(np.minimum(np.diff(setting.val_proposals.offsets), options.windows).mean()),
        "backbone": backbone,
        "rows": rows,
        "shown": str(val.path(_drawn_image(val))),
    }
    write_text(root / "lineage.json", json.dumps(result, indent=2) + "\n")
    return result


def _backbone(setting: Setting) -> dict[str, Any]:
    detail, seconds = begin.begin_backbone(setting)
    return asdict(Row("backbone", "Backbone", {}, seconds, 0.0, 0.0, detail, begin.BACKBONE))


def _drawn_image(val: Dataset) -> int:
    """The first image of a split with the most objects, of which more than 12 count as 12."""
    return int(np.argmax(np.minimum(np.diff(val.offsets), 12)))


def _row(setting: Setting[LineageOptions], key: str) -> dict[str, Any]:
    """Train, score, draw and time a detector; one without an RPN gets selective search's proposals."""
    member, val = _DETECTORS[key], setting.val
    weights, train_seconds = member.train(setting, setting.root / key)
    detector = Detector.load(weights, device=setting.options.device)
    given = setting.val_proposals if detector.model.rpn is None else None
    metrics = evaluate(setting.truth, detector.detect_dataset(val, max_det=100, proposals=given)).scores.metrics
    pictures = setting.root / "pictures"
    pictures.mkdir(exist_ok=True)
    cast(Detections, detector.predict(val.source(_drawn_image(val)), conf=0.5)).save(pictures / f"{key}.jpg")
    parts: dict[str, list[float]] = {}
    timed = np.linspace(0, len(val) - 1, min(setting.options.timed, len(val))).round().astype(int)
    for index in timed.tolist():
        for stage, times in stage_times(detector.prepared, [val.path(index)], repeats=3, warmup=1).items():
            parts.setdefault(stage, []).append(times.median / 1e3)
    median = {stage: statistics.median(taken) for stage, taken in parts.items()}
    proposing = sum(median.get(stage, 0.0) for stage in ("rpn", "proposals"))
    row = Row(
        key=key,
        name=member.name,
        metrics={name: metrics[name] for name in _METRICS},
        train_seconds=train_seconds,
        proposals=proposing,
        network=sum(median.values()) - proposing - median["read"],
        detail=member.detail,
        weights=str(weights.relative_to(setting.root)),
        parts=median,
    )
    return asdict(row)


def _rcnn(setting: Setting, folder: Path) -> Trained:
    started = time.perf_counter()
    return _saved(setting, folder, begin.rcnn(setting, setting.options.seed), "rcnn_tiny", started)


def _sppnet(setting: Setting, folder: Path, *, five: bool) -> Trained:
    options = setting.options
    started = time.perf_counter()
    model = sppnet_model(begin.pretrained_rcnn(setting), options.size, five=five).to(choose_device(options.device))
    train_stages(
        model,
        setting.train,
        setting.train_proposals,
        Bounds(options.learn_images, options.windows, options.seed),
        # Only two layers are trained: a third of the time.
        TuneSettings(minutes=options.minutes / 3, lr=5e-4, seed=options.seed),
        FitSettings(pair=0.5, seed=options.seed),
    )
    return _saved(setting, folder, model, "sppnet_tiny_5_scales" if five else "sppnet_tiny", started)


def _saved(setting: Setting, folder: Path, model: TwoStage, zoo_name: str, started: float) -> Trained:
    """Save a detector trained stage by stage."""
    seconds = time.perf_counter() - started
    weights = folder / "weights.safetensors"
    Detector(model, zoo_name, setting.train.names, device=setting.options.device).save(weights)
    return weights, seconds


def _zoo(setting: Setting, folder: Path, model: str, **changes: Any) -> Trained:
    """A detector of the zoo, trained as `twostage train` does."""
    result = begin.trained(setting, folder, model, **changes)
    return Path(result["weights"]), result["seconds"]


def _fast(setting: Setting, folder: Path) -> Trained:
    return _zoo(setting, folder, "fast_rcnn_tiny", proposals=setting.root / begin.PROPOSALS)


def _alternating(setting: Setting, folder: Path) -> Trained:
    twice = 2 * setting.options.minutes
    return _zoo(setting, folder, "faster_rcnn_tiny", scheme="alternating", minutes=twice)


_SPPNET = "one feature map per image, pyramid 6-3-2-1, frozen convolutions"
_DETECTORS = {
    "rcnn": Member("R-CNN", "each proposal cropped and passed through the CNN, SVMs, ridge regressors", _rcnn),
    "sppnet": Member("SPPnet", _SPPNET, partial(_sppnet, five=False)),
    "sppnet_5_scales": Member("SPPnet, five scales", _SPPNET, partial(_sppnet, five=True)),
    "fast_rcnn": Member("Fast R-CNN", "RoIPool, multi-task loss for classes and boxes", _fast),
    "faster_rcnn_alternating": Member(
        "Faster R-CNN, four steps",
        "alternating training of RPN and detector, which share their convolutions",
        _alternating,
    ),
    "faster_rcnn_joint": Member(
        "Faster R-CNN, joint", "RPN and detector trained together", partial(_zoo, model="faster_rcnn_tiny")
    ),
    "faster_rcnn_fpn": Member(
        "Faster R-CNN + FPN",
        "anchors and regions assigned to pyramid levels, RoIAlign",
        partial(_zoo, model="faster_rcnn_tiny_fpn"),
    ),
}
