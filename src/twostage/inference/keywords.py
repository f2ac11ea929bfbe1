"""The keywords of a detector's methods, and the check of their values."""

from pathlib import Path
from typing import Any, TypedDict

from twostage.data.proposals import ProposalSet
from twostage.distributed import Processes
from twostage.errors import UsageError
from twostage.inference.test_time_augmentation import TestTimeAugmentation
from twostage.kinds import coerce, describe, matches


class PredictKeywords(TypedDict, total=False):
    """The keywords of `Detector.predict`."""

    conf: float
    iou: float | None
    max_det: int | None
    batch: int
    views: TestTimeAugmentation


class EvaluateKeywords(TypedDict, total=False):
    """The keywords of `Detector.detect_dataset`."""

    batch: int
    workers: int | None
    conf: float | None
    iou: float | None
    max_det: int | None
    processes: Processes
    proposals: Path | ProposalSet | None
    views: TestTimeAugmentation


def required(name: str, value: Any, kind: Any) -> Any:
    """The value of an argument converted to its type. Raises UsageError where it does not fit."""
    good = coerce(value, kind)
    if not matches(good, kind):
        raise UsageError(f"{name} is {value!r}, and must be {describe(kind)}.")
    return good
