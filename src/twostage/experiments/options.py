"""Options of `twostage lineage` and `twostage ablate`. Importing this module imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from twostage.common_options import RunOptions, TrainDataOptions
from twostage.errors import UsageError, nearest
from twostage.options import option

DETECTORS = (
    "rcnn",
    "sppnet",
    "sppnet_5_scales",
    "fast_rcnn",
    "faster_rcnn_alternating",
    "faster_rcnn_joint",
    "faster_rcnn_fpn",
)
_MINUTES = "Training time of each network; the four steps together take twice as long."
STUDIES = (
    "anchors",
    "rpn_lambda",
    "proposals_at_test",
    "features",
    "stages",
    "svm",
    "multi_task",
    "sampling",
    "roi",
    "pyramids",
)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(TrainDataOptions, RunOptions):
    parts: ClassVar[tuple[str, ...]] = ()  # what a comparison consists of
    # The default, all parts, is written by none, so that a resumed run can ask for all.
    only: tuple[str, ...] = option((), "", group="Model")
    weights: Path | None = option(
        None, "Backbone of an earlier run to start from, instead of training one first.", group="Model"
    )
    val_split: str | None = option(
        None, "Split that detectors are compared on (default: val, else valid, else test).", group="Data"
    )
    size: int = option(384, "Shortest side of the image, for networks that take all of it.", group="Images", low=32)
    windows: int = option(500, "Proposals per image, in training and at test.", group="Proposals", low=1)
    learn_images: int = option(200, "Images on which the SVMs and box regressors are fitted.", group="Proposals", low=1)
    minutes: float = option(1.5, _MINUTES, group="Schedule", above=0)
    resume: Path | None = option(
        None, "Run folder to resume; finished parts are kept and shown, and --only may ask for more.", group="Run"
    )
    out: Path | None = option(None, "New folder (default: the next free one under runs/).", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.only:
            if name not in self.parts:
                raise UsageError(f"only: {name!r} is not known. {nearest(name, self.parts)}")


@dataclass(frozen=True, kw_only=True)
class LineageOptions(CompareOptions):
    parts: ClassVar[tuple[str, ...]] = DETECTORS
    only: tuple[str, ...] = option((), f"Detectors to train (default: {' '.join(DETECTORS)}).", group="Model")
    timed: int = option(8, "Images on which prediction is timed.", group="Validation", low=1)


@dataclass(frozen=True, kw_only=True)
class AblateOptions(CompareOptions):
    parts: ClassVar[tuple[str, ...]] = STUDIES
    only: tuple[str, ...] = option((), f"Studies to run (default: {' '.join(STUDIES)}).", group="Model")
    minutes: float = option(1.0, _MINUTES, group="Schedule", above=0)
    seeds: int | None = option(
        None, "Runs of each detector, with seeds from --seed on (default: 3).", group="Schedule", low=1
    )
