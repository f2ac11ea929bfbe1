"""What more images would bring: runs on a quarter and a half of them, and a power law through their errors.

A detector's error falls about as a power of the number of training images (Hestness et al. 2017, "Deep Learning Scaling
is Predictable, Empirically", section 2). All runs have the same number of steps, or minutes, so that only the images
differ.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from twostage.atomic import write_text
from twostage.data.dataset import Dataset, select_images
from twostage.data.order import images_per_epoch, steps_per_epoch
from twostage.data.rare_classes import repeat_factors
from twostage.data.stratified import stratified_order
from twostage.distributed import Processes, process_group
from twostage.evaluation.plots import plot_learning_curve, save_figure
from twostage.folders import claimed
from twostage.shell import command
from twostage.training.cross_validation import fold_folder, images_to_fold, mean_of_defined, resumed_splits
from twostage.training.folder import naming_resume, read_options, resumed_options
from twostage.training.options import TrainOptions
from twostage.training.recipe import RECIPES, epochs_of, recipe_name
from twostage.training.splits import Splits, open_splits
from twostage.training.subruns import begin_or_resume, keep_result, result_of

log = logging.getLogger("twostage.training")

PARTS = (4, 2)  # one image of so many


class LearningCurve(NamedTuple):
    """Training images and the best AP of training on them, from few to all; and the AP expected with twice as many.

    `low` and `high`: the least and the greatest AP that any two of the points expect.
    """

    images: tuple[int, ...]
    AP: tuple[float, ...]
    expected: float
    low: float
    high: float

    def __str__(self) -> str:
        measured = ", ".join(f"{ap:.3f} with {n}" for n, ap in zip(self.images, self.AP, strict=True))
        return (
            f"AP {measured} images to learn from; with twice as many, {2 * self.images[-1]}, probably about "
            f"{self.expected:.3f} by a line through these few points, {self.low:.3f} to {self.high:.3f} by lines "
            "through two of them."
        )


def expected_with_twice(images: Sequence[int], ap: Sequence[float]) -> tuple[float, float, float]:
    """The AP with twice as many images as the last: a line through the logarithms of 1 - AP and of the images.

    After it the least and the greatest of the lines through any two of the points: how far the first can be trusted.
    All at least the last AP: where more images brought nothing, twice as many are not expected to harm.
    """
    errors = 1 - np.clip(ap, 0, 1 - 1e-6)
    x, y = np.log(images), np.log(errors)
    slopes = [np.polyfit(x, y, 1)[0], *((y[j] - y[i]) / (x[j] - x[i]) for i, j in combinations(range(len(x)), 2))]
    expected, *of_two = (1 - errors[-1] * 2 ** np.minimum(0, slopes)).tolist()
    return expected, min(of_two), max(of_two)


def add_learning_curve(
    options: TrainOptions, result: dict[str, Any], *, splits: Splits | None = None, backbone: nn.Module | None = None
) -> dict[str, Any]:
    """Train on parts of the images of a finished training, and write learning_curve.json and .png into its folder.

    Each run of `result` that was scored has such a curve, the folds of a cross-validation too; the AP are their means.
    Returns the result with "learning_curve". Can be resumed.
    """
    root = Path(result["out"])
    # What a resumed training was not given again is as it was recorded.
    recorded = read_options(root) if options.resume is None else resumed_options(options, root)
    free = ("data", "images", "proposals", "device", "workers", "offline")
    here = {**{name: getattr(recorded, name) for name in free}, "quiet": options.quiet}
    with process_group() as processes, ExitStack() as held:
        processes.on_main(lambda: held.enter_context(claimed(root / "state")))
        held.enter_context(naming_resume(command("twostage", "train", "--resume", root)))
        with processes.sync_errors():
            scored = _scored_runs(root, recorded, splits)
        curves = []
        for folder, one in scored.items():
            own = replace(read_options(folder), **here, curve=False)
            ap = result["metrics"]["AP"] if folder == root else (result_of(folder) or {})["metrics"]["AP"]
            curves.append([*_on_parts(own, folder, one, processes, backbone, root), (len(one.train), ap)])
        images = tuple(round(fmean(count for count, _ in runs)) for runs in zip(*curves, strict=True))
        means = tuple(mean_of_defined(ap for _, ap in runs) for runs in zip(*curves, strict=True))
        curve = LearningCurve(images, means, *expected_with_twice(images, means))
        processes.on_main(lambda: _write(root, curve))
    log.info("%s", curve)
    return result | {"learning_curve": curve._asdict()}


def _scored_runs(root: Path, recorded: TrainOptions, splits: Splits | None) -> dict[Path, Splits]:
    """The folder and the splits of the runs that were validated: the training itself, or its folds."""
    if recorded.folds is None:
        return {root: splits or open_splits(recorded)}
    folds = resumed_splits(root, images_to_fold(recorded, splits), recorded.folds, recorded.seed)
    return {fold_folder(root, number): one for number, one in enumerate(folds, 1)}


def _on_parts(
    options: TrainOptions, folder: Path, splits: Splits, processes: Processes, backbone: nn.Module | None, root: Path
) -> list[tuple[int, float]]:
    """The number of images and the AP of the run on each part, begun, gone on with, or done before."""
    order = stratified_order(splits.train, options.seed)
    found = []
    for part in PARTS:
        train = select_images(splits.train, np.sort(order[::part]))
        log.info("Learning curve: %d of %d images.", len(train), len(splits.train))
        place = folder / "curve" / str(len(train))
        done = result_of(place)
        if done is None:
            own = replace(options, **_schedule(options, splits.train, train))
            done = begin_or_resume(own, place, processes, splits._replace(train=train), backbone, root=root)
            keep_result(place, done, processes)
        found.append((len(train), done["metrics"]["AP"]))
    return found


def _schedule(options: TrainOptions, whole: Dataset, part: Dataset) -> dict[str, Any]:
    """As many steps and validations as with all images, in epochs of a part of them, in which images may come twice."""
    recipe = RECIPES[recipe_name(options)]
    threshold = recipe.repeat_threshold if options.repeat_threshold is None else options.repeat_threshold
    of_whole, of_part = (
        steps_per_epoch(images_per_epoch(len(images), repeat_factors(images, threshold)), options.batch or recipe.batch)
        for images in (whole, part)
    )
    epochs = None if options.minutes else epochs_of(options, recipe, len(whole))
    every = options.eval_every or (epochs and max(1, round(epochs / recipe.validations)))
    values = {"epochs": epochs, "eval_every": every}
    return {name: value and max(1, round(value * of_whole / of_part)) for name, value in values.items()}


def _write(root: Path, curve: LearningCurve) -> None:
    write_text(root / "learning_curve.json", json.dumps(curve._asdict(), indent=2) + "\n")
    save_figure(plot_learning_curve(*curve), root / "learning_curve.png")
    report = root / "report.txt"
    before = report.read_text(encoding="utf-8") if report.exists() else ""
    if str(curve) not in before:  # that of a cross-validation is not written anew when it is resumed
        write_text(report, f"{before}\n{curve}\n" if before else f"{curve}\n")
