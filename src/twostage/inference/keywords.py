"""The keywords of a detector's methods, and the checks of their values."""

from collections.abc import Sequence
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
    proposals: str | Path | ProposalSet | None
    views: TestTimeAugmentation


def required(name: str, value: Any, kind: Any) -> Any:
    """The value of an argument converted to its type. Raises UsageError where it does not fit."""
    good = coerce(value, kind)
    if not matches(good, kind):
        raise UsageError(f"{name} is {value!r}, and must be {describe(kind)}.")
    return good


def class_names(names: Sequence[str]) -> Sequence[str]:
    """The classes. Raises UsageError where they are not a list of distinct strings."""
    listed = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else []
    if not listed or not all(isinstance(name, str) for name in listed) or len(set(listed)) < len(listed):
        raise UsageError(f"names is {names!r}; give the classes as a list of distinct strings.")
    return listed
