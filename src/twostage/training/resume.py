"""Resuming a run exactly as if it had not stopped: which options may change, and which must be the same."""

from dataclasses import fields, replace
from pathlib import Path

from twostage.data.dataset import Dataset
from twostage.errors import DataError, UsageError
from twostage.training.folder import RunFolder, read_options
from twostage.training.options import TrainOptions
from twostage.training.state import Progress

# Where a run computes and where its data lie do not change what it learns.
FREE = ("data", "images", "proposals", "device", "workers", "quiet", "offline", "resume")


def resumed(options: TrainOptions, folder: Path) -> TrainOptions:
    """The options of the run, with those that may change. Raises UsageError where another one differs."""
    stored = read_options(folder)
    defaults = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(options)}
    given = {name: value for name in defaults if (value := getattr(options, name)) != defaults[name]}
    for name in given:
        if name not in FREE and given[name] != getattr(stored, name):
            raise UsageError(
                f"{name}: a resumed run keeps its options, and another {name} would change it. "
                f"Leave it out, or begin a new run with --weights {RunFolder(folder).last}."
            )
    return replace(stored, **given)


def require_same_images(progress: Progress, train: Dataset) -> None:
    """Raises DataError where the split has not as many images as when the run was stopped."""
    if progress.images != len(train):
        raise DataError(
            f"{train.root}: the split {train.split!r} has {len(train)} images now, and had {progress.images} when the "
            "run was stopped. Bring the data back, or begin a new run with the weights of this one."
        )
