"""The two splits of a run: one to learn from, one to choose by."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from twostage.data.dataset import Dataset, select_classes
from twostage.data.faults import UNDECIDED, Fault, FaultyDataError, OnError, format_faults
from twostage.data.layout import Layout, Options
from twostage.data.mask_check import mask_faults
from twostage.data.memory import ROOT
from twostage.data.recognise import check_same_classes, default_splits, find_layout, opener, require_split
from twostage.errors import DataError, UsageError
from twostage.training.options import TrainOptions

log = logging.getLogger("twostage.training")

NONE = "none"  # the validation split of a run that is not validated
LEAST = 4  # images of a learning curve, of which one is a quarter
FEW = 5  # objects; a class with fewer is named


class Splits(NamedTuple):
    """What a run learns from, what it is validated on, and the latter with its boxes as they are written.

    Losses need boxes that can be learned; the metrics are defined on the boxes of the file (`Options.repair`).
    """

    train: Dataset
    val: Dataset | None
    truth: Dataset | None


def open_splits(options: TrainOptions) -> Splits:
    """The data sets to train and to validate on; the layout and the repairs are logged.

    Raises UsageError for a split that is not there, DataError with the faults of both splits, or where there is nothing
    to learn.
    """
    assert options.data is not None
    if options.data.name == ROOT.name and not options.data.exists():
        raise UsageError(
            "This run was trained on data in memory: resume it in Python, train(dataset, val=..., resume=...)."
        )
    layout = find_layout(options.data)
    splits = _choose(layout, options)
    unused = ", ".join(repr(split) for split in layout.splits if split not in splits)
    validating = "without a split to validate on" if splits[1] == NONE else f"validating on {splits[1]!r}"
    log.info("%s: training on %r, %s%s", layout, splits[0], validating, f"; not used: {unused}" if unused else "")
    how = Options(options.images, options.voc_offset, options.on_error, boxes=options.boxes)
    open_split = opener(layout, how)
    opened: list[Dataset] = []
    faults: list[Fault] = []
    for split in dict.fromkeys(splits):
        if split == NONE and NONE not in layout.splits:
            continue
        try:
            opened.append(open_split(split))
        except FaultyDataError as error:
            faults += error.faults
    if faults:
        raise FaultyDataError(f"{layout.root}: errors in the data. --on-error skip leaves out what is wrong.", faults)
    # Skipping cannot leave out what is in doubt: the boxes of a whole split.
    if doubts := [fault for dataset in opened for fault in dataset.faults if fault.code in UNDECIDED]:
        raise FaultyDataError(f"{layout.root}: it is not clear what the boxes are.", doubts)
    if len(opened) == 2:
        check_same_classes(*opened)
        mended = any(fault.severity == "repair" for fault in opened[1].faults) and options.on_error != "skip"
        opened.append(opener(layout, how._replace(repair=False))(opened[1].split) if mended else opened[1])
    if options.names is not None:
        opened = [select_classes(dataset, options.names) for dataset in opened]
    for dataset in opened[:2]:
        _log(dataset)
    _require_objects(opened[0])
    return Splits(*opened) if len(opened) == 3 else Splits(opened[0], None, None)


def with_classes(splits: Splits, names: Sequence[str] | None) -> Splits:
    """The splits with some of their classes; None: all."""
    if names is None:
        return splits
    return Splits(*(None if one is None else select_classes(one, names) for one in splits))  # type: ignore[arg-type]


def given_splits(train: Dataset, val: Dataset | None) -> Splits:
    """The same from data sets that are open already, or were made in memory. Raises as `open_splits`."""
    if val is not None:
        check_same_classes(train, val)
    for dataset in (train, val):
        if dataset is not None:
            _log(dataset)
    _require_objects(train)
    return Splits(train, val, val)


def may_fold(options: TrainOptions) -> bool:
    """Whether no option contradicts cross-validation."""
    return options.scheme == "joint" and not options.patience and options.proposals is None


def require_parts(options: TrainOptions, train: Dataset, val: Dataset | None = None) -> None:
    """Raises UsageError where a learning curve would have a quarter of too few images, or no AP for want of objects."""
    if options.curve and len(train) < LEAST:
        raise UsageError(
            f"curve trains on a quarter of the images that a run learns from, and these are {len(train)}: leave it out."
        )
    if options.curve and val is not None and bool((val.crowd | val.difficult).all()):
        raise UsageError(
            f"curve compares AP, and the split {val.split!r} of {val.root} has no object that counts: leave it out, or "
            "choose another split to validate on."
        )


def require_masks(splits: Splits, on_error: OnError) -> None:
    """Raises DataError where a model with masks has none to learn from, or lacks some, or some are empty.

    With `on_error` "skip" the box alone is learned of an object without a mask, or with an empty one.
    """
    for dataset in splits[:2]:
        if dataset is None or not len(dataset.labels):
            continue
        fix = "Add masks, or choose a model without them"
        if dataset.masks is None:
            raise DataError(
                f"{dataset.root}: the split {dataset.split!r} has no masks, and this model learns them. {fix}."
            )
        if on_error == "skip":
            continue
        without = np.flatnonzero(dataset.unmasked & ~dataset.crowd & ~dataset.difficult)
        lacking = []
        if len(without):
            image = int(np.searchsorted(dataset.offsets, without[0], side="right")) - 1
            first = f"{dataset.file_name(image)}: object with id {dataset.annotation_ids[without[0]]}"
            lacking.append(f"{len(without)} of {len(dataset.labels)} objects have no mask ({first} the first)")
        empty = [fault for fault in mask_faults(dataset) if fault.code == "empty-mask"]
        if empty:
            first = f"{empty[0].file}: {empty[0].object}"
            lacking.append(f"{len(empty)} of {len(dataset.labels)} masks have no pixel in their image ({first})")
        if lacking:
            raise DataError(
                f"{dataset.root}: the split {dataset.split!r}: {lacking[0]}, and this model learns masks. {fix}; "
                "--on-error skip goes on with the boxes."
            )


def _choose(layout: Layout, options: TrainOptions) -> tuple[str, str]:
    default_train, default_val = default_splits(layout)
    train, val = options.train_split or default_train, options.val_split or default_val
    have = ", ".join(layout.splits)
    if options.train_split is not None:  # before one to validate on is looked for beside it
        require_split(layout, options.train_split)
    if train is None:
        raise UsageError(
            f"{options.data}: has no split called train or trainval. Choose by --train-split from: {have}."
        )
    if val is None or val == train:
        folds = "cross-validate by --folds 3, " if may_fold(options) else ""
        raise UsageError(
            f"{options.data}: no split to validate on besides {train!r} (it has: {have}). "
            f"Choose one by --val-split, {folds}or train without by --val-split {NONE}."
        )
    return train, val


def _log(dataset: Dataset) -> None:
    notes = [fault for fault in dataset.faults if fault.severity == "note"]
    repairs = [fault for fault in dataset.faults if fault.severity != "note"]
    if repairs:
        log.warning("%s: left out or mended:\n%s", dataset.split, format_faults(repairs))
    if notes:
        log.info("%s", format_faults(notes, most=10))
    log.info(
        "%s: %d images, %d objects of %s",
        *(dataset.split, len(dataset), len(dataset.labels), ", ".join(dataset.names) or "no class"),
    )


def _require_objects(train: Dataset) -> None:
    learnable = ~(train.crowd | train.difficult)
    if not learnable.any():
        raise DataError(
            f"{train.root}: the split {train.split!r} has no object to learn from. Label objects in its images, or "
            "choose another split."
        )
    counts = np.bincount(train.labels[learnable], minlength=len(train.names)).tolist()
    lacking = [name for name, count in zip(train.names, counts, strict=True) if not count]
    if lacking:
        log.warning("The split %r has no object of: %s. They cannot be learned.", train.split, ", ".join(lacking))
    rare = [f"{name} ({count})" for name, count in zip(train.names, counts, strict=True) if 0 < count < FEW]
    if rare:
        log.warning("The split %r has hardly an object of: %s. Label more of them.", train.split, ", ".join(rare))
