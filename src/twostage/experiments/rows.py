"""A row of the comparison: a trained detector scored on the validation split, drawn and timed."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from twostage.data.dataset import Dataset
from twostage.detections import Detections
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.experiments.begin import Setting
from twostage.experiments.options import LineageOptions
from twostage.inference.timing import stage_times

_METRICS = ("AP", "AP50", "AP75", "voc07")


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


def drawn_image(val: Dataset) -> int:
    """The first image of a split with the most objects, of which more than 12 count as 12."""
    return int(np.argmax(np.minimum(np.diff(val.offsets), 12)))


def make_row(
    setting: Setting[LineageOptions], key: str, name: str, detail: str, weights: Path, train_seconds: float
) -> Row:
    """Score, draw and time the detector of a weights file; one without an RPN gets selective search's proposals."""
    val = setting.val
    detector = Detector.load(weights, device=setting.options.device)
    given = setting.val_proposals if detector.model.rpn is None else None
    metrics = evaluate(setting.truth, detector.detect_dataset(val, max_det=100, proposals=given)).scores.metrics
    pictures = setting.root / "pictures"
    pictures.mkdir(exist_ok=True)
    cast(Detections, detector.predict(val.source(drawn_image(val)), conf=0.5)).save(pictures / f"{key}.jpg")
    parts: dict[str, list[float]] = {}
    timed = np.linspace(0, len(val) - 1, min(setting.options.timed, len(val))).round().astype(int)
    for index in timed.tolist():
        for stage, times in stage_times(detector.prepared, [val.path(index)], repeats=3, warmup=1).items():
            parts.setdefault(stage, []).append(times.median / 1e3)
    median = {stage: statistics.median(taken) for stage, taken in parts.items()}
    proposing = sum(median.get(stage, 0.0) for stage in ("rpn", "proposals"))
    return Row(
        key=key,
        name=name,
        metrics={name: metrics[name] for name in _METRICS},
        train_seconds=train_seconds,
        proposals=proposing,
        network=sum(median.values()) - proposing - median["read"],
        detail=detail,
        weights=str(weights.relative_to(setting.root)),
        parts=median,
    )
