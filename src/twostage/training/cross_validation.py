"""Cross-validation, for data without a validation split: runs on all images but a part, scored on that part, then one
on all images (Stone 1974).

The mean AP of the folds estimates that of the last run, for which no image is left to be scored on. Where the folds
were best before their end on average, that is the AP which counts, and the last run ends there too, in the same
schedule. Each is a training run in a folder of its own, and can be resumed.
"""

import csv
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch import nn

from twostage.atomic import write_text
from twostage.data.dataset import Dataset, select_images
from twostage.data.duplicates import same_images
from twostage.data.layout import Options
from twostage.data.recognise import default_splits, find_layout, opener
from twostage.data.stratified import stratified_order
from twostage.distributed import Processes, process_group
from twostage.errors import DataError, TwostageError, UsageError
from twostage.run_config import CONFIG
from twostage.shell import command
from twostage.training.folder import RunFolder, claimed_root, naming_resume, read_options, resumed_options
from twostage.training.options import OF_VALIDATION, TrainOptions
from twostage.training.splits import NONE, Splits, may_fold, open_splits, require_parts, with_classes
from twostage.training.start import require_start, with_default_weights
from twostage.training.subruns import begin_or_resume, keep_result, result_of
from twostage.training.validate import chosen_by_quality, quality
from twostage.weights.file import load_weights, save_weights

log = logging.getLogger("twostage.training")

Validations = Sequence[tuple[float, dict[str, float]]]
"""Of one run: the share of it, from 0 to 1, and the metrics after it."""

FOLDS = 3  # where the data have no validation split and nothing is given
MOST = 200  # images that are cross-validated without being asked for
LAST = "all"  # the folder of the run on all images
PARTS = "folds.json"  # the names of the images that each fold is scored on


class Training(NamedTuple):
    """All runs: their options, their folder, the images, and what a Python caller gave in memory."""

    options: TrainOptions
    root: Path
    processes: Processes
    images: Dataset
    backbone: nn.Module | None


def cross_validate(
    options: TrainOptions, *, splits: Splits | None = None, backbone: nn.Module | None = None
) -> dict[str, Any]:
    """All runs that are not done yet; the last one's weights are the folder's. See `twostage.training.train`.

    "metrics" of the result are the means of the folds, after the share of a run that is best for all of them. Raises
    UsageError with fewer images than folds, or one.
    """
    with process_group() as processes, ExitStack() as held:
        with processes.sync_errors():
            if options.resume is None:
                options = with_default_weights(options, backbone)
                require_start(options)
            else:
                _require_validated(options.resume)
                options = replace(resumed_options(options, options.resume), out=options.resume)
            images = images_to_fold(options, splits)
            if options.folds is None:
                distinct = len(np.unique(_first_copies(images)))
                if distinct == 1:
                    raise UsageError(
                        f"{options.data}: there is one image to learn from, and none to validate on. Label more, or "
                        f"train on it alone by --val-split {NONE}."
                    )
                options = replace(options, folds=min(FOLDS, distinct))
                log.info(
                    "%s has no split to validate on: cross-validation with %d folds, then a run on all images. "
                    "--val-split %s trains once.",
                    *(options.data, options.folds, NONE),
                )
            assert options.folds is not None
            folds = resumed_splits(options.resume, images, options.folds, options.seed)
            require_parts(options, folds[0].train)
            if alone := classes_of_one_fold(folds):
                log.warning(
                    "In the images of one fold alone: %s. Its run has none of them to learn from, so the mean AP is "
                    "too low. Label more images with them.",
                    ", ".join(alone),
                )
        root = processes.on_main(lambda: claimed_root(options, held))
        held.enter_context(naming_resume(command("twostage", "train", "--resume", root)))
        return _all_runs(Training(replace(options, resume=None), root, processes, images, backbone), folds)


def needs_cross_validation(options: TrainOptions, splits: Splits | None) -> bool:
    """Whether a new run is one of several: on request, or with few images and no split to validate on.

    What is wrong with the data is said by the run itself.
    """
    if options.folds is not None:
        return True
    if options.val_split is not None or splits is not None or options.data is None or not may_fold(options):
        return False
    with suppress(TwostageError):
        layout = find_layout(options.data)
        train, val = default_splits(layout)
        train = options.train_split or train
        if train is not None and val is None:
            return len(opener(layout, Options(options.images, options.voc_offset, "skip"))(train)) <= MOST
    return False


def require_not_part(folder: Path) -> None:
    """Raises UsageError for the folder of a fold, which alone does not say which images its run learns from."""
    root = folder.absolute().parent
    if (root / PARTS).exists():
        resume = command("twostage", "train", "--resume", root)
        raise UsageError(
            f"{folder}: a run of one fold of {root}. Resume that: {resume}, or, for the folds of an audit, give its "
            "command again"
        )


def _require_validated(root: Path) -> None:
    """Raises UsageError for the folds of an audit, whose runs have no AP."""
    first = fold_folder(root, 1)
    if (first / CONFIG).exists() and read_options(first).val_split == NONE:
        raise UsageError(
            f"{root}: the folds of an audit, which are trained without validation. Give the command of the audit again."
        )


def images_to_fold(options: TrainOptions, splits: Splits | None) -> Dataset:
    """All images to learn from, given or opened, with the classes to learn."""
    if splits is not None:
        return with_classes(splits, options.names).train
    return open_splits(replace(options, resume=None, val_split=NONE, folds=None, curve=False, **OF_VALIDATION)).train


def fold_folder(root: Path, number: int) -> Path:
    """The folder of a fold's run, counted from 1."""
    return root / f"fold-{number}"


def fold_splits(images: Dataset, folds: int, seed: int) -> list[Splits]:
    """All images but a part, and that part, for each fold: about the same classes in each, sizes differ by at most one.

    Files of equal content go to the same part, which is then larger. Raises UsageError with fewer images than folds.
    """
    return [_splits(images, part) for part in fold_parts(images, folds, seed)]


def resumed_splits(root: Path | None, images: Dataset, folds: int, seed: int) -> list[Splits]:
    """The same for the training in the folder `root`: the parts that were written there, since labels, and with them
    new parts, may have changed. Raises DataError where the number of images has.
    """
    if root is None or not (root / PARTS).exists():
        return fold_splits(images, folds, seed)
    names = json.loads((root / PARTS).read_text(encoding="utf-8"))["folds"]
    if (count := sum(map(len, names))) != len(images):
        raise DataError(
            f"{images.root}: the split {images.split!r} has {len(images)} images now, and had {count} when the folds "
            f"of {root} were made. Bring the data back, or begin a new run."
        )
    index_of = {images.file_name(index): index for index in range(len(images))}
    if index_of.keys() != {name for part in names for name in part} or len(index_of) < count:
        return fold_splits(images, folds, seed)  # of another place, where paths are written otherwise, or not unique
    return [_splits(images, np.sort([index_of[name] for name in part])) for part in names]


def _splits(images: Dataset, part: Int64[np.ndarray, " _"]) -> Splits:
    """All images but a part, and that part."""
    val = select_images(images, part)
    return Splits(select_images(images, np.setdiff1d(np.arange(len(images)), part)), val, val)


def fold_parts(images: Dataset, folds: int, seed: int) -> list[Int64[np.ndarray, " _"]]:
    """The images that each fold's run does not learn from, by their indices. Raises as `fold_splits`."""
    first = _first_copies(images)
    order = stratified_order(images, seed)
    distinct = order[first[order] == order]
    if len(distinct) < folds:
        raise UsageError(f"folds is {folds}, more than the {len(distinct)} images, copies not counted: give fewer.")
    fold_of = np.empty(len(images), dtype=np.int64)
    fold_of[distinct] = np.arange(len(distinct)) % folds
    # Of two copies in different folds one would be learned, and the other scored.
    return [np.flatnonzero(fold_of[first] == number) for number in range(folds)]


def _first_copies(images: Dataset) -> Int64[np.ndarray, " n"]:
    """For each image the first one whose file has the same content, itself where there is no other."""
    first = np.arange(len(images))
    for places in same_images([images]):
        copies = [index for _, index in places]
        first[copies] = min(copies)
    return first


def classes_of_one_fold(folds: Sequence[Splits]) -> list[str]:
    """The classes that some fold is scored on and its run has no object of to learn from."""
    found: set[str] = set()
    for train, val, _ in folds:
        assert val is not None
        learned, counted = (one.labels[~(one.crowd | one.difficult)] for one in (train, val))
        found |= {train.names[label] for label in np.setdiff1d(counted, learned)}
    return sorted(found)


def keep_parts(root: Path, folds: Sequence[Splits]) -> None:
    """Write which images each fold does not learn from, by their names: labels, and with them the folds, may change."""
    parts = [splits.val for splits in folds if splits.val is not None]
    names = [[part.file_name(index) for index in range(len(part))] for part in parts]
    write_text(root / PARTS, json.dumps({"folds": names}, indent=1) + "\n")


def best_share(curves: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The share of a run after which the mean quality of several runs was highest (`validate.quality`, an AP).

    Each curve has a share of the run, from 0 to 1, and the quality there, of every validation; a run's own best is not
    looked for, since what is best for all is what another run may expect. Of equal ones it is the last. Curves whose AP
    is undefined (-1) do not count.
    """
    curves = [curve for curve in curves if all(ap >= 0 for _, ap in curve)]
    if not curves:
        return 1.0
    shares = sorted({share for curve in curves for share, _ in curve})
    mean = np.mean([np.interp(shares, *np.array(curve).T) for curve in curves], axis=0)
    return shares[int(np.flatnonzero(mean == mean.max())[-1])]


def at_best_share(folds: Sequence[Validations]) -> tuple[float, list[dict[str, float]]]:
    """The share of a run that is best for all folds together, and the metrics of each fold there.

    Not each fold's own best ones, which are chosen on the very images that they are measured on.
    """
    share = best_share([[(at, quality(metrics)) for at, metrics in validations] for validations in folds])
    return share, metrics_at(share, folds)


def metrics_at(share: float, folds: Sequence[Validations]) -> list[dict[str, float]]:
    """The metrics of each fold after a share of its run."""
    return [min(validations, key=lambda one: abs(one[0] - share))[1] for validations in folds]


def mean_of_defined(values: Iterable[float]) -> float:
    """The mean of those metrics that are defined, or -1, which stands for undefined."""
    defined = [value for value in values if value >= 0]
    return fmean(defined) if defined else -1.0


def _all_runs(training: Training, folds: Sequence[Splits]) -> dict[str, Any]:
    options, root, processes, images, _ = training
    by_quality = chosen_by_quality(options)
    processes.on_main(lambda: keep_parts(root, folds))
    results = []
    for number, splits in enumerate(folds, 1):
        assert splits.val is not None
        log.info(
            "Fold %d of %d: %d images to learn from, %d to score on.",
            *(number, len(folds), len(splits.train), len(splits.val)),
        )
        results.append(_train(training, fold_folder(root, number), splits))
    validations = [_validations(fold_folder(root, number)) for number in range(1, len(folds) + 1)]
    share, there = at_best_share(validations) if by_quality else (1.0, metrics_at(1.0, validations))
    means = {name: mean_of_defined(metrics[name] for metrics in there) for name in results[0]["metrics"]}
    each = [metrics["AP"] for metrics in there]
    if means["AP"] < 0:
        log.warning("Cross-validation: AP has no value, since no image has an object that counts.")
    elif by_quality:
        log.info(
            "Cross-validation: AP %.3f (%.3f to %.3f)%s, best after %.0f %% of a run.",
            *(means["AP"], min(ap for ap in each if ap >= 0), max(each)),
            f", masks {means['segm_AP']:.3f}" if "segm_AP" in means else "",
            100 * share,
        )
    log.info("Now on all %d images.", len(images))
    last = _train(training, root / LAST, Splits(images, None, None), until=share)
    weights = root / "weights" / "best.safetensors"
    summary = {"folds": len(folds), "share": share, "AP": each, "metrics": means}

    def keep() -> None:
        card, state = load_weights(RunFolder(root / LAST).last)
        measured = f"means of {len(folds)} runs on other parts of the images, each on its rest, after {share:.0%} of it"
        save_weights(weights, state, replace(card, metrics=means, origin={**card.origin, "metrics": measured}))
        write_text(root / "cross_validation.json", json.dumps(summary, indent=2) + "\n")

    processes.on_main(keep)
    runs = [*results, last]
    return last | {
        "out": str(root),
        "weights": str(weights),
        "metrics": means,
        **{name: sum(result[name] for result in runs) for name in ("epochs", "steps")},
        "seconds": round(sum(result["seconds"] for result in runs), 1),
    }


def _train(training: Training, folder: Path, splits: Splits, *, until: float = 1.0) -> dict[str, Any]:
    """The run of a folder, or its result where it is done."""
    options, root, processes, _, backbone = training
    if (done := result_of(folder)) is not None:
        return done
    validation = {"val_split": NONE, **OF_VALIDATION} if splits.val is None else {"val_split": None}
    assert options.folds is not None
    minutes = options.minutes and options.minutes / (options.folds + 1)
    own = like_first_fold(replace(options, folds=None, curve=False, minutes=minutes, **validation), folder, root)
    result = begin_or_resume(own, folder, processes, splits, backbone, root=root, until=until)
    keep_result(folder, result, processes)
    return result


def like_first_fold(options: TrainOptions, folder: Path, root: Path) -> TrainOptions:
    """The options of a fold's run, after the first with the size, batch and scale that the first one chose by its
    objects and its time."""
    first = fold_folder(root, 1)
    if folder == first:
        return options
    chosen = read_options(first)
    return replace(options, size=chosen.size, batch=chosen.batch, scale=chosen.scale)


def _validations(folder: Path) -> Validations:
    """From metrics.csv."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    total = float(rows[-1]["step"])
    return [
        (float(row["step"]) / total, {name: float(value) for name, value in row.items() if value})
        for row in rows
        if row.get("AP")
    ]
