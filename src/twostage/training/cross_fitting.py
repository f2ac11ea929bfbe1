"""Cross-fitting: detectors of which each has learned from all images but a part, to judge the labels of that part.

A network has learned by heart some of the labels that it was trained on, wrong ones included; what it predicts for
images it has not learned from does not follow them (Northcutt, Jiang and Chuang 2021, section 3). The folds, and the
folder, are those of cross-validation; there is no run on all images.
"""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from twostage.data.dataset import Dataset
from twostage.distributed import process_group
from twostage.errors import DataError, MissingError, UsageError
from twostage.run_config import CONFIG
from twostage.training.cross_validation import (
    PARTS,
    fold_folder,
    images_to_fold,
    keep_parts,
    like_first_fold,
    resumed_splits,
)
from twostage.training.folder import RunFolder, claimed_root, resumed_options
from twostage.training.options import OF_VALIDATION, TrainOptions
from twostage.training.splits import NONE, Splits
from twostage.training.start import require_start, with_default_weights
from twostage.training.subruns import begin_or_resume, keep_result, result_of


class FoldDetector(NamedTuple):
    """The weights of a fold's run, and the images that it did not learn from, by their indices in the data set."""

    weights: Path
    images: Int64[np.ndarray, " m"]


def cross_fit(images: Dataset, options: TrainOptions) -> list[FoldDetector]:
    """Train a detector for each of `options.folds`, without validation, each in a folder of its own in `options.out`.

    `minutes` or `epochs` are those of each fold. With `resume`, the folder of all, it goes on where it was stopped.
    Raises as `twostage.training.train`.
    """
    with process_group() as processes, ExitStack() as held:
        if options.resume is not None:
            options = replace(resumed_options(options, options.resume), out=options.resume)
        images = images_to_fold(options, Splits(images, None, None))
        if options.resume is None:
            options = with_default_weights(options)
            require_start(options)
        if options.folds is None:
            raise UsageError("folds is not given: choose the number of detectors to train, as folds=3.")
        folds = resumed_splits(options.resume, images, options.folds, options.seed)
        root = processes.on_main(lambda: claimed_root(options, held))
        processes.on_main(lambda: keep_parts(root, folds))
        for number, splits in enumerate(folds, 1):
            folder = fold_folder(root, number)
            if result_of(folder) is None:
                own = replace(options, folds=None, resume=None, val_split=NONE, **OF_VALIDATION)
                alone = splits._replace(val=None, truth=None)
                own = like_first_fold(own, folder, root)
                keep_result(folder, begin_or_resume(own, folder, processes, alone, None, root=root), processes)
        return fold_detectors(root, images)


def is_folds_run(path: Path) -> bool:
    """Whether a folder holds the runs of several folds: of `train --folds`, or of `cross_fit`."""
    return (path / CONFIG).exists() and (path / PARTS).exists()


def fold_detectors(root: Path, images: Dataset) -> list[FoldDetector]:
    """The detectors of a finished training of several folds, and for each the images that it judges.

    Images that no fold knows are judged by the first. Raises MissingError where a fold is not done, DataError where
    the folds are of other images.
    """
    names = json.loads((root / PARTS).read_text(encoding="utf-8"))["folds"]
    fold_of = {name: number for number, part in enumerate(names) for name in part}
    here = [images.file_name(index) for index in range(len(images))]
    if not set(here) & fold_of.keys():
        raise DataError(
            f"{root}: none of the {len(fold_of)} images of its folds is in the split {images.split!r}: name the data "
            "and the split that it was trained on."
        )
    number_of = np.array([fold_of.get(name, 0) for name in here], dtype=np.int64)
    found = []
    for number in range(len(names)):
        folder = RunFolder(fold_folder(root, number + 1))
        if result_of(folder.path) is None:
            raise MissingError(f"{folder.path}: this fold is not done: let its training come to the end.")
        weights = folder.best if folder.best.exists() else folder.last
        found.append(FoldDetector(weights, np.flatnonzero(number_of == number)))
    return found
