"""A training run that is part of a larger training: in a folder of its own, gone on with where it was stopped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from twostage.atomic import write_text
from twostage.distributed import Processes
from twostage.training.folder import RunFolder
from twostage.training.options import TrainOptions
from twostage.training.run import run
from twostage.training.splits import Splits

RESULT = "result.json"  # of a run that is done


def result_of(folder: Path) -> dict[str, Any] | None:
    """What `keep_result` wrote; None where the run is not done."""
    path = folder / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def keep_result(folder: Path, result: dict[str, Any], processes: Processes) -> None:
    """Mark the run as done."""
    processes.on_main(lambda: write_text(folder / RESULT, json.dumps(result)))


def begin_or_resume(
    options: TrainOptions,
    folder: Path,
    processes: Processes,
    splits: Splits | None,
    backbone: nn.Module | None,
    *,
    root: Path,
    until: float = 1.0,
) -> dict[str, Any]:
    """Train with these options in this folder, or go on there; `root` and `until` as in `twostage.training.run`.

    Returns as `twostage.training.train` does.
    """
    if RunFolder(folder).state.exists():
        # Devices, and where the data are, may differ from those of the interrupted run.
        free = ("images", "proposals", "device", "workers", "offline", "quiet")
        given: dict[str, Any] = {name: getattr(options, name) for name in free}
        resumed = TrainOptions(options.data, resume=folder, **given)
        return run(resumed, splits=splits, backbone=backbone, root=root)
    processes.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))  # stopped before its first step
    return run(replace(options, out=folder), splits=splits, backbone=backbone, root=root, until=until)
