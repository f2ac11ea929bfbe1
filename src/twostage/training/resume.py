"""Resuming a run exactly as if it had not stopped: which options may change, and what must be the same."""

from pathlib import Path

from twostage import run_config
from twostage.data.dataset import Dataset
from twostage.errors import DataError
from twostage.training.folder import RunFolder, read_options
from twostage.training.options import TrainOptions
from twostage.training.state import Progress

# Where a run computes and where its data lie do not change its result.
FREE = ("data", "images", "proposals", "device", "workers", "quiet", "offline", "resume")


def resumed(options: TrainOptions, folder: Path) -> TrainOptions:
    """The options of the run in `folder`, with those given anew. Raises UsageError for one that would change it."""
    return run_config.resumed(
        options, read_options(folder), FREE, f"begin a new run with --weights {RunFolder(folder).last}"
    )


def require_same_images(progress: Progress, train: Dataset) -> None:
    """Raises DataError where the split has not as many images as when the run was stopped."""
    if progress.images != len(train):
        raise DataError(
            f"{train.root}: the split {train.split!r} has {len(train)} images now, and had {progress.images} when the "
            "run was stopped. Bring the data back, or begin a new run with the weights of this one."
        )
