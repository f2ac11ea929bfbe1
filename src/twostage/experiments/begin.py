"""What the detectors of a comparison share: the run folder, the data, selective search's proposals, one backbone."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.data.proposals import ProposalSet, write_proposals
from twostage.device import choose_device
from twostage.environment import environment
from twostage.errors import UsageError
from twostage.experiments.options import CompareOptions
from twostage.experiments.small import load_backbone, rcnn_model, save_backbone
from twostage.folders import claimed, new_folder, next_folder
from twostage.models.proposals.selective_search import selective_search
from twostage.models.proposals.sources import Source, propose
from twostage.models.two_stage import TwoStage
from twostage.progress import images_bar
from twostage.run_config import CONFIG, NOT_SAVED, read_config, resumed, to_yaml
from twostage.shell import command
from twostage.training import train
from twostage.training.options import TrainOptions
from twostage.training.splits import Splits, open_splits
from twostage.training.stagewise.fit import FitSettings
from twostage.training.stagewise.svm import linear_svc
from twostage.training.stagewise.train import Bounds, pretrain, train_stages
from twostage.training.stagewise.tune import TuneSettings

log = logging.getLogger("twostage.experiments")

BACKBONE = "backbone.safetensors"
PROPOSALS = "proposals.safetensors"
# What a resumed run may change: where it writes, and how much is to be done.
_FREE = (*NOT_SAVED, "only", "seeds")

O = TypeVar("O", bound=CompareOptions)  # noqa: E741


@dataclass(frozen=True)
class Setting(Generic[O]):
    """What all detectors of a comparison share; `truth` is `val` with its boxes as written."""

    options: O
    root: Path
    train: Dataset
    val: Dataset
    truth: Dataset
    train_proposals: ProposalSet
    val_proposals: ProposalSet


@contextmanager
def comparison(options: O, verb: str) -> Iterator[Setting[O]]:
    """A new or resumed comparison, with its folder locked and selective search done on all images.

    Everything is checked before anything is written. Raises MissingError without the extra `lineage` or the run to
    resume, DataError for a damaged configuration, UsageError for a folder that is not empty, and as
    `training.splits.open_splits`.
    """
    options, root, splits = _checked(options, verb)
    train, val, truth = splits
    assert val is not None
    assert truth is not None
    with claimed(root / "state"), _naming_resume(verb, root):
        write_text(root / CONFIG, to_yaml(options))  # of a resumed run too, which may ask for more
        source = Source("selective_search", seed=options.seed)
        proposals = []
        for split in (train, val):
            with images_bar(f"selective search, {split.split}", quiet=options.quiet) as after_image:
                proposals.append(propose(source, split, after_image=after_image))
        file = root / PROPOSALS
        if not file.exists():
            write_proposals(file, list(zip((train, val), proposals, strict=True)), options.windows)
        yield Setting(options, root, train, val, truth, *proposals)


@contextmanager
def _naming_resume(verb: str, root: Path) -> Iterator[None]:
    """Where Ctrl-C ends what is inside, log the command that goes on; a training inside has named its own before."""
    try:
        yield
    except KeyboardInterrupt:
        log.warning("Continue the comparison with: %s", command("twostage", verb, "--resume", root))
        raise


def _checked(options: O, verb: str) -> tuple[O, Path, Splits]:
    """The options of a new or resumed comparison, its folder and its data."""
    selective_search(np.zeros((8, 8, 3), np.uint8))  # raises without the extra
    linear_svc()
    choose_device(options.device)
    if options.resume is not None:
        saved = read_config(type(options), options.resume)
        kept = resumed(options, saved, _FREE, "begin a new run by --out")
        return kept, options.resume, _splits(kept)
    options = replace(options, only=options.only or options.parts)
    splits = _splits(options)
    root = new_folder(options.out, "--out") if options.out else next_folder(Path("runs") / verb, "run")
    write_text(root / "env.json", json.dumps(environment(), indent=2) + "\n")
    return options, root, splits


def _splits(options: CompareOptions) -> Splits:
    splits = open_splits(_of_data(options))
    if splits.val is None:
        raise UsageError("val_split is none: give a split that is not trained on, to compare the detectors on")
    if bool((splits.val.crowd | splits.val.difficult).all()):
        raise UsageError(
            f"val_split: the split {splits.val.split!r} of {splits.val.root} has no object that counts, and the "
            "detectors are compared by AP: choose another split"
        )
    return splits


def _of_data(options: CompareOptions) -> TrainOptions:
    """The options of a training on the data set of the comparison."""
    return TrainOptions(
        options.data,
        train_split=options.train_split,
        val_split=options.val_split,
        images=options.images,
        voc_offset=options.voc_offset,
        boxes=options.boxes,
    )


def load_or_make(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON value of a file of an earlier run, or what `make` returns, which is then written there."""
    if not path.exists():
        write_text(path, json.dumps(make(), indent=2) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def begin_backbone(setting: Setting) -> tuple[str, float]:
    """Train the shared backbone as a classifier of crops, or read it from a file; a description, and the seconds."""
    options = setting.options
    torch.manual_seed(options.seed)
    model = _new_rcnn(setting)
    started = time.perf_counter()
    if options.weights is not None:
        load_backbone(options.weights, model)
        detail = f"read from {options.weights}"
    else:
        settings = TuneSettings(
            minutes=options.minutes, positives=64, negatives=64, negative=(0.0, 0.3), lr=2e-3, seed=options.seed
        )
        steps = pretrain(model, setting.train, settings)
        detail = f"{steps} steps of 128 crops, half of them objects"
    save_backbone(setting.root / BACKBONE, model)
    return detail, time.perf_counter() - started


def pretrained_rcnn(setting: Setting) -> TwoStage:
    """An R-CNN with the shared backbone, to be trained further."""
    model = _new_rcnn(setting)
    load_backbone(setting.root / BACKBONE, model)
    return model


def _new_rcnn(setting: Setting) -> TwoStage:
    return rcnn_model(len(setting.train.names), setting.options.windows).to(choose_device(setting.options.device))


def rcnn(setting: Setting, seed: int) -> TwoStage:
    """R-CNN, trained from the shared backbone."""
    options, model = setting.options, pretrained_rcnn(setting)
    train_stages(
        model,
        setting.train,
        setting.train_proposals,
        Bounds(options.learn_images, options.windows, seed),
        TuneSettings(minutes=options.minutes, lr=5e-4, seed=seed),
        FitSettings(pair=0.6, seed=seed),
    )
    return model


def trained(setting: Setting, folder: Path, model: str, **changes: Any) -> dict[str, Any]:
    """Train a detector of the zoo from the shared backbone, as `twostage train` does, or resume it; returns its result.

    `changes` are options of that verb; `model_fields` are added to those that all comparisons share.
    """
    options = setting.options
    common = {"nms": 0.3, "soft_nms": "off", "roi_size": 6}
    fields_of_model = {**common, **changes.pop("model_fields", {})}
    if model == "fast_rcnn_tiny":
        fields_of_model = {"rpn_keep_train": options.windows, "rpn_keep_test": options.windows, **fields_of_model}
    new = replace(
        _of_data(options),
        model=model,
        recipe="scratch",  # the shared backbone was trained for minutes
        weights=str(setting.root / BACKBONE),
        model_fields=fields_of_model,
        size=options.size,
        max_size=2 * options.size,
        minutes=options.minutes,
        device=options.device,
        seed=options.seed,
        eval_every=10**6,  # only at the end
        out=folder,
        quiet=options.quiet,
    )
    new = replace(new, **changes)
    has = CONFIG if new.scheme == "alternating" else "state/state.safetensors"
    if (folder / has).exists():
        return train(TrainOptions(resume=folder, quiet=options.quiet))
    shutil.rmtree(folder, ignore_errors=True)  # it was stopped before its first step
    return train(new)
