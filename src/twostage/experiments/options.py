"""Options of `twostage lineage` and `twostage ablate`. Importing this module imports no torch."""

from dataclasses import dataclass
from pathlib import Path

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
        None, "Run folder to resume; finished parts are kept, and --only may ask for more.", group="Run"
    )
    out: Path | None = option(None, "New folder (default: the next free one under runs/).", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        known = type(self).only  # the default: all of them
        for name in self.only:
            if name not in known:
                raise UsageError(f"only: {name!r} is not known. {nearest(name, known)}")


@dataclass(frozen=True, kw_only=True)
class LineageOptions(CompareOptions):
    only: tuple[str, ...] = option(DETECTORS, "Detectors to train.", group="Model")
    timed: int = option(8, "Images on which prediction is timed.", group="Validation", low=1)


@dataclass(frozen=True, kw_only=True)
class AblateOptions(CompareOptions):
    only: tuple[str, ...] = option(STUDIES, "Studies to run.", group="Model")
    minutes: float = option(1.0, _MINUTES, group="Schedule", above=0)
    seeds: int | None = option(
        None, "Runs of each detector, with seeds from --seed on (default: 3).", group="Schedule", low=1
    )
