"""A row of the comparison: a trained detector scored on the validation split, drawn and timed."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.detections import Detections
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.experiments.begin import Setting
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

    def save(self, path: Path) -> None:
        """Write the row for a resumed run."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Row":
        """A saved row."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class Named(NamedTuple):
    """The key of a detector, its name, and a description."""

    key: str
    name: str
    detail: str


class Examples(NamedTuple):
    """How many images of the validation split are timed, and the index of the one that is drawn."""

    timed: int
    drawn: int

    def indices(self, val: Dataset) -> list[int]:
        """The images that are timed, spread over the split."""
        return np.linspace(0, len(val) - 1, min(self.timed, len(val))).round().astype(int).tolist()


def make_row(setting: Setting, examples: Examples, weights: Path, named: Named, seconds: float) -> Row:
    """Score, draw and time the detector of a weights file; one without an RPN gets selective search's proposals."""
    val, truth = setting.splits.val, setting.splits.truth
    assert val is not None
    assert truth is not None
    detector = Detector.load(weights, device=setting.options.device)
    given = setting.val if detector.model.rpn is None else None
    metrics = evaluate(truth, detector.detect_dataset(val, max_det=100, proposals=given)).scores.metrics
    pictures = setting.root / "pictures"
    pictures.mkdir(exist_ok=True)
    cast(Detections, detector.predict(val.source(examples.drawn), conf=0.5)).save(pictures / f"{named.key}.jpg")
    parts: dict[str, list[float]] = {}
    for index in examples.indices(val):
        for stage, times in stage_times(detector.prepared, [val.path(index)], repeats=3, warmup=1).items():
            parts.setdefault(stage, []).append(times.median / 1e3)
    median = {stage: statistics.median(taken) for stage, taken in parts.items()}
    proposing = sum(median.get(stage, 0.0) for stage in ("rpn", "proposals"))
    return Row(
        key=named.key,
        name=named.name,
        metrics={name: metrics[name] for name in _METRICS},
        train_seconds=seconds,
        proposals=proposing,
        network=sum(median.values()) - proposing - median["read"],
        detail=named.detail,
        weights=str(weights.relative_to(setting.root)),
        parts=median,
    )


def load_or_make(root: Path, key: str, make: Callable[[], Row]) -> Row:
    """The row of an earlier run in this folder, or a new one, which is saved."""
    path = root / "rows" / f"{key}.json"
    if path.exists():
        return Row.load(path)
    row = make()
    row.save(path)
    return row
