"""What comparisons begin with: their folder, the data, everybody's proposals, and the one backbone."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from twostage.atomic import write_text
from twostage.data.proposals import ProposalSet, write_proposals
from twostage.device import choose_device
from twostage.environment import environment
from twostage.errors import UsageError
from twostage.experiments.options import CompareOptions
from twostage.experiments.small import load_backbone, save_backbone, stagewise, window_net
from twostage.folders import new_folder, next_folder
from twostage.models.proposals.selective_search import selective_search
from twostage.models.proposals.sources import Source, propose
from twostage.models.stagewise.detector import Stagewise
from twostage.models.stagewise.nets import WindowNet
from twostage.progress import images_bar
from twostage.run_config import CONFIG, NOT_SAVED, read_config, resumed, to_yaml
from twostage.training import train
from twostage.training.options import TrainOptions
from twostage.training.splits import Splits, open_splits
from twostage.training.stagewise.fit import FitSettings
from twostage.training.stagewise.svm import linear_svc
from twostage.training.stagewise.train import Bounds, pretrain, train_rcnn
from twostage.training.stagewise.tune import TuneSettings

BACKBONE = "backbone.safetensors"
PROPOSALS = "proposals.safetensors"
# What a resumed run may change: where it writes, and how much is to be done.
_FREE = (*NOT_SAVED, "only", "seeds")

O = TypeVar("O", bound=CompareOptions)  # noqa: E741


@dataclass(frozen=True)
class Setting:
    """What all detectors of a comparison have in common; `root` is its folder."""

    options: CompareOptions
    splits: Splits
    train: ProposalSet
    val: ProposalSet
    source: Source
    root: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The classes."""
        return self.splits.train.names


def begin(options: O, verb: str) -> tuple[O, Path, Splits]:
    """What a comparison was told, the folder of a new one or of one to go on with, and its data, opened.

    Nothing is written where anything is wrong. Raises MissingError where the extra `lineage` or a run to go on with is
    not there, DataError for a configuration that is none, UsageError for a folder with something in it, and as
    `training.splits.open_splits`.
    """
    selective_search(np.zeros((8, 8, 3), np.uint8))  # the extra is there, or nothing begins
    linear_svc()
    choose_device(options.device)
    if options.resume is not None:
        saved = read_config(type(options), options.resume)
        kept = resumed(options, saved, _FREE, "begin a new run by --out")
        write_text(options.resume / CONFIG, to_yaml(kept))
        return kept, options.resume, _splits(kept)
    splits = _splits(options)
    root = new_folder(options.out, "--out") if options.out else next_folder(Path("runs") / verb, "run")
    write_text(root / CONFIG, to_yaml(options))
    write_text(root / "env.json", json.dumps(environment(), indent=2) + "\n")
    return options, root, splits


def _splits(options: CompareOptions) -> Splits:
    splits = open_splits(
        TrainOptions(
            options.data,
            train_split=options.train_split,
            val_split=options.val_split,
            images=options.images,
            voc_offset=options.voc_offset,
        )
    )
    if splits.val is None:
        raise UsageError("val_split is none: detectors are compared on a split that they did not learn from")
    return splits


def setting_of(options: CompareOptions, root: Path, splits: Splits) -> Setting:
    """Selective search done on all pictures."""
    assert splits.val is not None
    source = Source("selective_search", seed=options.seed)
    found = []
    for split in (splits.train, splits.val):
        with images_bar(f"selective search, {split.split}", quiet=options.quiet) as after_image:
            found.append(propose(source, split, after_image=after_image))
    file = root / PROPOSALS
    if not file.exists():
        write_proposals(file, [(splits.train, found[0]), (splits.val, found[1])], options.windows)
    return Setting(options, splits, found[0], found[1], source, root)


def begin_backbone(setting: Setting) -> tuple[str, float]:
    """Train the network that all begin with, a classifier of crops, or read it; what was done, and its seconds."""
    options, names = setting.options, setting.names
    torch.manual_seed(options.seed)
    net = window_net(len(names)).to(choose_device(options.device))
    begun = time.perf_counter()
    if options.weights is not None:
        load_backbone(options.weights, net)
        detail = f"read from {options.weights}"
    else:
        settings = TuneSettings(
            minutes=options.minutes, positives=64, negatives=64, negative=(0.0, 0.3), lr=2e-3, seed=options.seed
        )
        steps = pretrain(net, partial(stagewise, num_classes=len(names)), setting.splits.train, settings)
        detail = f"{steps} steps of 128 crops, half of them objects"
    save_backbone(setting.root / BACKBONE, net)
    return detail, time.perf_counter() - begun


def begun_net(setting: Setting) -> WindowNet:
    """That network, to be trained further."""
    net = window_net(len(setting.names))
    load_backbone(setting.root / BACKBONE, net)
    return net.to(choose_device(setting.options.device))


def rcnn(setting: Setting, seed: int) -> Stagewise:
    """R-CNN, tuned from that network and fitted behind it."""
    options = setting.options
    return train_rcnn(
        begun_net(setting),
        partial(stagewise, num_classes=len(setting.names)),
        setting.splits.train,
        setting.train,
        Bounds(options.learn_images, options.windows, seed),
        TuneSettings(minutes=options.minutes, lr=5e-4, seed=seed),
        FitSettings(pair=0.6, seed=seed),
    )


def trained(setting: Setting, folder: Path, model: str, **changes: Any) -> dict[str, Any]:
    """A detector of the zoo trained from the backbone as `twostage train` does, or gone on with; that verb's result.

    `changes` are of its options; `model_fields` join those that all comparisons share.
    """
    options = setting.options
    common = {"nms": 0.3, "soft_nms": "off", "roi_size": 6, "proposals_seed": options.seed}
    fields_of_model = {**common, **changes.pop("model_fields", {})}
    if model == "fast_rcnn_tiny":
        fields_of_model = {"rpn_keep_train": options.windows, "rpn_keep_test": options.windows, **fields_of_model}
    told = TrainOptions(
        options.data,
        model=model,
        weights=str(setting.root / BACKBONE),
        model_fields=fields_of_model,
        train_split=options.train_split,
        val_split=options.val_split,
        images=options.images,
        voc_offset=options.voc_offset,
        size=options.size,
        max_size=2 * options.size,
        minutes=options.minutes,
        device=options.device,
        seed=options.seed,
        eval_every=10**6,  # at the end alone
        out=folder,
        quiet=options.quiet,
    )
    told = replace(told, **changes)
    has = CONFIG if told.scheme == "alternating" else "state/state.safetensors"
    if (folder / has).exists():
        return train(TrainOptions(resume=folder, quiet=options.quiet))
    shutil.rmtree(folder, ignore_errors=True)  # it was stopped before its first step
    return train(told)
