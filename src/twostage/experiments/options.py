"""What `twostage lineage` and `twostage ablate` can be told. Importing this module imports no torch."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from twostage.errors import UsageError, nearest
from twostage.options import option, validate

DETECTORS = (
    "rcnn",
    "sppnet",
    "sppnet_5_scales",
    "fast_rcnn",
    "faster_rcnn_alternating",
    "faster_rcnn_joint",
    "faster_rcnn_fpn",
)
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


@dataclass(frozen=True)
class CompareOptions:
    """What both comparisons share: on which pictures, for how long, from which network."""

    data: Path | None = option(None, "Data set in VOC, COCO or YOLO layout (needed unless --resume is given).")
    _: KW_ONLY
    only: tuple[str, ...] = option((), "", group="Model")
    weights: Path | None = option(
        None, "Backbone to begin with, as an earlier run leaves it, instead of training one first.", group="Model"
    )
    train_split: str | None = option(None, "Split to learn from (default: train, else trainval).", group="Data")
    val_split: str | None = option(None, "Split to score on (default: val, else valid, else test).", group="Data")
    images: Path | None = option(None, "Folder of the pictures, where a COCO file does not show it.", group="Data")
    voc_offset: Literal["auto", "0", "1"] = option("auto", "The first pixel's number in VOC files.", group="Data")
    size: int = option(384, "Shortest side of the picture where a network sees it whole.", group="Images", low=32)
    windows: int = option(
        500, "Proposals of a picture that are looked at, in training and at test.", group="Proposals", low=1
    )
    learn_images: int = option(
        200, "Pictures whose windows the SVMs and regressors learn from.", group="Proposals", low=1
    )
    minutes: float = option(
        1.5, "Training of each network; the four steps together take twice as long.", group="Schedule", above=0
    )
    seed: int = option(0, "Everything random follows from it.", group="Run", low=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", group="Run")
    resume: Path | None = option(
        None, "Folder of a run to go on with; what is done stays, and --only can ask for more.", group="Run"
    )
    out: Path | None = option(None, "New folder (default: the next free one under runs/).", group="Output")
    quiet: bool = option(False, "Warnings and results only.", group="Output")

    def __post_init__(self) -> None:
        validate(self)
        if self.data is None and self.resume is None:
            raise UsageError("no data set given: name its folder or file")


@dataclass(frozen=True)
class LineageOptions(CompareOptions):
    """Which detectors, and how many pictures are timed."""

    _: KW_ONLY
    only: tuple[str, ...] = option(DETECTORS, "Detectors to train.", group="Model")
    timed: int = option(8, "Pictures that are timed.", group="Validation", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_known(self.only, DETECTORS)


@dataclass(frozen=True)
class AblateOptions(CompareOptions):
    """Which of the papers' tables, and how often."""

    _: KW_ONLY
    only: tuple[str, ...] = option(STUDIES, "Studies to run.", group="Model")
    minutes: float = option(
        1.0, "Training of each network; the four steps together take twice as long.", group="Schedule", above=0
    )
    seeds: int | None = option(None, "How often each is trained, from --seed on (default: 3).", group="Schedule", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_known(self.only, STUDIES)


def _require_known(only: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in only:
        if name not in known:
            raise UsageError(f"only: there is no {name!r}. {nearest(name, known)}")
