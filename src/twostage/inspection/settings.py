"""What each setting is worth on a data set: AP measured, not estimated, over the range of the setting.

Feature maps of an image are computed once; what follows them is run for every value. Only settings that act behind the
maps are tried: the RPN's and those of the last step.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twostage.data.dataset import Dataset
from twostage.evaluation.coco import MAX_DETECTIONS, coco_scores
from twostage.evaluation.results import Accumulator
from twostage.inference.runner import Runner
from twostage.inspection.rerun import can_rerun, detect_again
from twostage.inspection.trace import trace
from twostage.models.config import DetectorConfig, OneStageConfig, TwoStageConfig
from twostage.models.heads.postprocess import PostprocessConfig


class MaskScores(NamedTuple):
    """The same of masks as of boxes."""

    AP: float
    AP50: float


class Setting(NamedTuple):
    """Values of the configuration by their paths, and what they are worth.

    AP and AP50 are of boxes; `segm` is None without masks, and of an exported file, which computes them for its own
    settings alone. `milliseconds` are those of everything behind the feature maps, per image, in the median.
    """

    fields: dict[str, Any]
    AP: float
    AP50: float
    milliseconds: float
    segm: MaskScores | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without masks no "segm"."""
        values = self._asdict()
        segm = values.pop("segm")
        return values if segm is None else {**values, "segm": segm._asdict()}


class Worth(NamedTuple):
    """What the present settings reach, and others."""

    now: Setting
    others: tuple[Setting, ...]

    def to_list(self) -> list[dict[str, Any]]:
        """A dictionary for each, with the gain in AP, also of masks, and the milliseconds more."""
        rows = []
        for one in self.others:
            row = one.to_dict() | {
                "gain": one.AP - self.now.AP,
                "milliseconds": one.milliseconds - self.now.milliseconds,
            }
            if one.segm is not None and self.now.segm is not None:
                row["segm"]["gain"] = one.segm.AP - self.now.segm.AP
            rows.append(row)
        return rows


def candidates(config: DetectorConfig, post: PostprocessConfig) -> Iterator[dict[str, Any]]:
    """Single settings over their ranges, without the present values."""
    ranges: dict[str, tuple[Any, Sequence[Any]]] = {
        "postprocess.score_threshold": (post.score_threshold, (0.001, 0.01, 0.02, 0.05, 0.1)),
        "postprocess.nms": (post.nms, (0.3, 0.4, 0.5, 0.6, 0.7)),
        "postprocess.soft_nms": (post.soft_nms, ("off", "linear", "gaussian")),
        "postprocess.max_det": (post.max_det, (50, 100, 200, 300)),
    }
    if isinstance(config, TwoStageConfig) and config.rpn is not None:
        rpn, keep = config.rpn, config.proposals.keep_test
        ranges |= {
            "rpn.top_test": (rpn.top_test, _around(rpn.top_test)),
            "rpn.nms": (rpn.nms, (0.5, 0.6, 0.7, 0.8, 0.9)),
            "proposals.keep_test": (keep, _around(keep)),
        }
    if isinstance(config, OneStageConfig):
        ranges["retinanet.top"] = (config.retinanet.top, _around(config.retinanet.top))
    for field, (now, values) in ranges.items():
        # The nearest first: of values with the same AP it is taken.
        others = [value for value in values if value != now]
        yield from ({field: value} for value in (others if isinstance(now, str) else _nearest(others, now)))


def _nearest(values: Sequence[float], now: float) -> list[float]:
    return sorted(values, key=lambda value: abs(value - now))


def _around(value: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys((max(1, value // 4), max(1, value // 2), 2 * value, 4 * value)))


def worth(
    runner: Runner,
    dataset: Dataset,
    post: PostprocessConfig,
    trials: Sequence[Mapping[str, Any]],
    after_image: Callable[[int, int], None] = lambda done, all: None,
) -> Worth:
    """AP of boxes and masks with the present settings and with each of the trials that this detector can follow.

    An exported file follows those of the last step, without masks.
    """
    possible = [{}, *(dict(trial) for trial in trials if all(can_rerun(runner, field) for field in trial))]
    found = [Accumulator() for _ in possible]
    taken: list[list[float]] = [[] for _ in possible]
    for index in range(len(dataset)):
        seen = trace(runner, dataset.image(index), dataset.names)
        distinct: dict[bytes, dict[str, Any]] = {}  # most settings give most masks of an image again: each is kept once
        for trial, gathered, times in zip(possible, found, taken, strict=True):
            begun = time.perf_counter()
            one = detect_again(runner, seen, post, trial)
            times.append(1e3 * (time.perf_counter() - begun))
            masks = one["masks"] if dataset.masks is not None else None
            shared = None if masks is None else [distinct.setdefault(rle["counts"], rle) for rle in masks]
            gathered.add(index, one["boxes"], one["scores"], one["class_ids"], shared)
        after_image(index + 1, len(dataset))
    rows = []
    for trial, gathered, times in zip(possible, found, taken, strict=True):
        most = max(MAX_DETECTIONS[-1], trial.get("postprocess.max_det", post.max_det))
        limits = MAX_DETECTIONS if most == MAX_DETECTIONS[-1] else (*MAX_DETECTIONS, most)
        results = gathered.results()
        scores = coco_scores(dataset, results, max_detections=limits).summary()
        segm = None
        if results.masks is not None:
            of_masks = coco_scores(dataset, results, masks=True, max_detections=limits).summary()
            segm = MaskScores(of_masks["AP"], of_masks["AP50"])
        rows.append(Setting(trial, scores["AP"], scores["AP50"], float(np.median(times)) if times else 0.0, segm))
    return Worth(rows[0], tuple(rows[1:]))
