"""One detector of the comparison: trained, scored on the validation split, timed. Each leaves a row."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.detections import Detections
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.evaluation.results import Accumulator, Results
from twostage.experiments.begin import Setting
from twostage.experiments.small import save_stagewise
from twostage.inference.prepare import prepared
from twostage.inference.timing import stage_times
from twostage.models.stagewise.detector import Stagewise

_METRICS = ("AP", "AP50", "AP75", "voc07")


@dataclass
class Row:
    """What is told of a detector. Seconds of training are of its own stages, those of test of an image.

    `proposals` are the seconds that proposing takes of an image at test, `network` those of all the rest but reading.
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
        """Write it, so that a run that is resumed finds it."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Row":
        """A row that was saved."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class Named(NamedTuple):
    """A detector's key, its name, and what is special about it."""

    key: str
    name: str
    detail: str


class Shown(NamedTuple):
    """How many images of the validation split are timed, and which one is drawn."""

    timed: int
    drawn: int

    def indices(self, val: Dataset) -> list[int]:
        """Those that are timed, spread over the split."""
        return np.linspace(0, len(val) - 1, min(self.timed, len(val))).round().astype(int).tolist()


def score(setting: Setting, results: Results) -> dict[str, float]:
    """The numbers of detections on the validation split."""
    assert setting.splits.truth is not None
    metrics = evaluate(setting.splits.truth, results).scores.metrics
    return {name: metrics[name] for name in _METRICS}


def seconds_of_search(setting: Setting, shown: Shown) -> float:
    """What the source takes of an image, computed anew: the median of those that are timed."""
    val, taken = setting.splits.val, []
    assert val is not None
    for index in shown.indices(val):
        image = val.image(index)
        begun = time.perf_counter()
        setting.source(image)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


@torch.inference_mode()
def stagewise_row(setting: Setting, shown: Shown, model: Stagewise, named: Named, seconds: float) -> Row:
    """Score and time an R-CNN or SPPnet on selective search's proposals."""
    val, count = setting.splits.val, setting.options.windows
    assert val is not None
    weights = setting.root / named.key / "weights.safetensors"
    save_stagewise(weights, model, setting.names)
    fast = prepared(model, torch.float32)
    gathered, taken = Accumulator(), []
    timed = set(shown.indices(val))
    for index in range(len(val)):
        image = torch.from_numpy(val.image(index)).permute(2, 0, 1)
        boxes = torch.from_numpy(setting.val.best(index, count)[0])
        found = fast(image, boxes)
        if index in timed:
            taken.append(_median_seconds(partial(fast, image, boxes)))
        arrays = [value.cpu().numpy() for value in found]
        gathered.add(index, *arrays[:3])
        if index == shown.drawn:
            _draw(setting, named.key, index, *arrays)
    return Row(
        key=named.key,
        name=named.name,
        metrics=score(setting, gathered.results()),
        train_seconds=seconds,
        proposals=seconds_of_search(setting, shown),
        network=statistics.median(taken),
        detail=named.detail,
        weights=str(weights.relative_to(setting.root)),
    )


def _median_seconds(run: Callable[[], object]) -> float:
    """Of three runs, as a detector of the zoo is timed; it has run before."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def detector_row(setting: Setting, shown: Shown, weights: Path, named: Named, seconds: float) -> Row:
    """Score and time a detector of the zoo."""
    val = setting.splits.val
    assert val is not None
    detector = Detector.load(weights, device=setting.options.device)
    found = detector.detect_dataset(val, max_det=100, proposals=setting.val if detector.model.rpn is None else None)
    _save_picture(setting, named.key, detector.predict(val.source(shown.drawn), conf=0.5))
    parts: dict[str, list[float]] = {}
    for index in shown.indices(val):
        for stage, times in stage_times(detector.prepared, [val.path(index)], repeats=3, warmup=1).items():
            parts.setdefault(stage, []).append(times.median / 1e3)
    median = {stage: statistics.median(taken) for stage, taken in parts.items()}
    proposing = sum(median.get(stage, 0.0) for stage in ("rpn", "proposals"))
    return Row(
        key=named.key,
        name=named.name,
        metrics=score(setting, found),
        train_seconds=seconds,
        proposals=proposing,
        network=sum(median.values()) - proposing - median["read"],
        detail=named.detail,
        weights=str(weights.relative_to(setting.root)),
        parts=median,
    )


def kept(setting_root: Path, key: str, make: Callable[[], Row]) -> Row:
    """The row of an earlier run, or a new one, which is kept."""
    path = setting_root / "rows" / f"{key}.json"
    if path.exists():
        return Row.load(path)
    row = make()
    row.save(path)
    return row


def _draw(
    setting: Setting,
    key: str,
    index: int,
    boxes: Any,
    scores: Any,
    labels: Any,
    proposals: Any,
) -> None:
    val = setting.splits.val
    assert val is not None
    image = val.image(index)
    keep = scores > 0
    # Distances from a hyperplane as numbers between 0 and 1, so that they can be drawn as scores.
    found = Detections(
        boxes=boxes[keep],
        scores=1 / (1 + np.exp(-scores[keep])),
        class_ids=labels[keep],
        proposals=proposals[keep],
        names=setting.names,
        size=image.shape[:2],
        image=image,
        path=str(val.path(index)),
    )
    _save_picture(setting, key, found)


def _save_picture(setting: Setting, key: str, found: Detections) -> None:
    folder = setting.root / "pictures"
    folder.mkdir(exist_ok=True)
    found.save(folder / f"{key}.jpg")
