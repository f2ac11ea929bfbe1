"""`twostage lineage`: the history of the family on one data set.

1. Proposals of all pictures. 2. One backbone, a classifier of crops. 3. Every detector from there; a row for each.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from twostage.atomic import write_text
from twostage.data.proposals import write_proposals
from twostage.environment import environment
from twostage.errors import DataError, MissingError, UsageError
from twostage.folders import claimed, new_folder, next_folder
from twostage.inference.device import choose_device
from twostage.lineage.options import LineageOptions
from twostage.lineage.rows import Row, Setting, detector_row, kept, stagewise_row
from twostage.lineage.small import load_backbone, pyramid_net, save_backbone, stagewise, window_net
from twostage.models.lineage.nets import WindowNet
from twostage.models.proposals.selective_search import selective_search
from twostage.models.proposals.sources import Source, propose
from twostage.progress import images_bar
from twostage.training import train
from twostage.training.lineage.fit import FitSettings
from twostage.training.lineage.svm import linear_svc
from twostage.training.lineage.train import Bounds, pretrain, train_rcnn, train_sppnet
from twostage.training.lineage.tune import TuneSettings
from twostage.training.options import TrainOptions
from twostage.training.splits import open_splits

log = logging.getLogger("twostage.lineage")

CONFIG = "config.yaml"
BACKBONE = "backbone.safetensors"
_PATHS = ("data", "weights", "images", "out")


def lineage(options: LineageOptions) -> dict[str, Any]:
    """Train, score and time the detectors; returns {"out", "backbone", "rows", "images", "settings"}.

    Raises MissingError without the extra `lineage`, and as `twostage.training.train`.
    """
    selective_search(np.zeros((8, 8, 3), np.uint8))  # the extra is there, or nothing begins
    linear_svc()
    choose_device(options.device)
    if options.resume is not None:
        options = _told(options.resume)
        root = options.out
        assert root is not None
    else:
        root = new_folder(options.out, "--out") if options.out else next_folder(Path("runs") / "lineage", "run")
        options = replace(options, out=root)
        write_text(root / CONFIG, _to_yaml(options))
        write_text(root / "env.json", json.dumps(environment(), indent=2) + "\n")
    with claimed(root / "state"):
        setting = _setting(options, root)
        backbone = kept(root, "backbone", lambda: _backbone(setting))
        rows = []
        for key in options.only:
            log.info("%s", key)
            row = kept(root, key, lambda key=key: _DETECTORS[key](setting, key))  # type: ignore[misc]
            rows.append(row)
            log.info("%s: AP50 %.3f, voc07 %.3f", row.name, row.metrics["AP50"], row.metrics["voc07"])
    train_split, val = setting.splits.train, setting.splits.val
    assert val is not None
    result = {
        "out": str(root),
        "data": str(train_split.root),
        "images": {"train": len(train_split), "val": len(val), "learned": min(options.learn_images, len(train_split))},
        "settings": {
            "size": options.size,
            "windows": options.windows,
            "minutes": options.minutes,
            "seed": options.seed,
        },
        "backbone": asdict(backbone),
        "rows": [asdict(row) for row in rows],
        "shown": str(val.path(setting.shown)),
    }
    write_text(root / "lineage.json", json.dumps(result, indent=2) + "\n")
    return result


def _setting(options: LineageOptions, root: Path) -> Setting:
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
    source = Source("selective_search", seed=options.seed)
    found = {}
    for split in (splits.train, splits.val):
        with images_bar(f"selective search, {split.split}", quiet=options.quiet) as after_image:
            found[split.split] = propose(source, split, after_image=after_image)
    train_set, val_set = found[splits.train.split], found[splits.val.split]
    file = root / "proposals.safetensors"
    if not file.exists():
        write_proposals(file, [(splits.train, train_set), (splits.val, val_set)], options.windows)
    shown = int(np.argmax(np.minimum(np.diff(splits.val.offsets), 12)))
    return Setting(options, splits, train_set, val_set, source, root, shown)


def _backbone(setting: Setting) -> Row:
    """The network that all begin with: a classifier of crops, trained or read."""
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
    return Row("backbone", "Backbone", {}, time.perf_counter() - begun, 0.0, 0.0, detail, BACKBONE)


def _begun(setting: Setting) -> WindowNet:
    net = window_net(len(setting.names))
    load_backbone(setting.root / BACKBONE, net)
    return net.to(choose_device(setting.options.device))


def _bounds(options: LineageOptions) -> Bounds:
    return Bounds(options.learn_images, options.windows, options.seed)


def _rcnn(setting: Setting, key: str) -> Row:
    options, names = setting.options, setting.names
    begun = time.perf_counter()
    model = train_rcnn(
        _begun(setting),
        partial(stagewise, num_classes=len(names)),
        setting.splits.train,
        setting.train,
        _bounds(options),
        TuneSettings(minutes=options.minutes, lr=5e-4, seed=options.seed),
        FitSettings(pair=0.6, seed=options.seed),
    )
    seconds = time.perf_counter() - begun
    return stagewise_row(setting, model, key, "R-CNN", seconds, "every window through the network, SVMs, ridge")


def _sppnet(setting: Setting, key: str) -> Row:
    options, names = setting.options, setting.names
    five = key.endswith("5_scales")
    begun = time.perf_counter()
    model = train_sppnet(
        pyramid_net(_begun(setting), len(names), options.size, five=five).to(choose_device(options.device)),
        partial(stagewise, num_classes=len(names)),
        setting.splits.train,
        setting.train,
        _bounds(options),
        # Only two layers learn: a third of the time.
        TuneSettings(minutes=options.minutes / 3, lr=5e-4, seed=options.seed),
        FitSettings(pair=0.5, seed=options.seed),
    )
    seconds = time.perf_counter() - begun
    name = "SPPnet, five scales" if five else "SPPnet"
    return stagewise_row(setting, model, key, name, seconds, "the map once, pyramid 6-3-2-1, fixed convolutions")


def _trained(setting: Setting, key: str, model: str, about: str, name: str, **changes: Any) -> Row:
    """A detector of the zoo, trained as `twostage train` does."""
    options, folder = setting.options, setting.root / key
    fields: dict[str, Any] = {"nms": 0.3, "soft_nms": "off", "roi_size": 6}
    if model == "fast_rcnn_tiny":
        fields |= {"rpn_keep_train": options.windows, "rpn_keep_test": options.windows}
    told = TrainOptions(
        options.data,
        model=model,
        weights=str(setting.root / BACKBONE),
        model_fields=fields,
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
    result = train(TrainOptions(resume=folder, quiet=options.quiet) if _resumable(folder) else told)
    return detector_row(setting, Path(result["weights"]), key, name, result["seconds"], about)


def _resumable(folder: Path) -> bool:
    return (folder / "state" / "state.safetensors").exists() or (folder / "config.yaml").exists()


def _fast(setting: Setting, key: str) -> Row:
    file = setting.root / "proposals.safetensors"
    return _trained(
        setting, key, "fast_rcnn_tiny", "RoIPool, one loss for classes and boxes", "Fast R-CNN", proposals=file
    )


def _alternating(setting: Setting, key: str) -> Row:
    name, about = "Faster R-CNN, four steps", "the network proposes; its steps share convolutions in the end"
    twice = 2 * setting.options.minutes
    return _trained(setting, key, "faster_rcnn_tiny", about, name, scheme="alternating", minutes=twice)


def _joint(setting: Setting, key: str) -> Row:
    return _trained(
        setting, key, "faster_rcnn_tiny", "proposals and detections learned together", "Faster R-CNN, joint"
    )


def _fpn(setting: Setting, key: str) -> Row:
    about = "anchors and regions on the level of their size, RoIAlign"
    return _trained(setting, key, "faster_rcnn_tiny_fpn", about, "Faster R-CNN + FPN")


_DETECTORS: dict[str, Callable[[Setting, str], Row]] = {
    "rcnn": _rcnn,
    "sppnet": _sppnet,
    "sppnet_5_scales": _sppnet,
    "fast_rcnn": _fast,
    "faster_rcnn_alternating": _alternating,
    "faster_rcnn_joint": _joint,
    "faster_rcnn_fpn": _fpn,
}


def _to_yaml(options: LineageOptions) -> str:
    values = {
        name: str(value.absolute()) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(options).items()
        if value is not None and name not in ("resume", "quiet")
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _told(folder: Path) -> LineageOptions:
    """The options of a run. Raises MissingError or DataError."""
    path = folder / CONFIG
    if not path.exists():
        raise MissingError(f"{folder}: no lineage run to go on with: it holds no {CONFIG}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        # Texts become paths, and lists tuples, as `options.validate` would make them.
        paths = {name: Path(values[name]) for name in _PATHS if name in values}
        return LineageOptions(**{**values, **paths, "only": tuple(values["only"]), "out": folder})
    except (yaml.YAMLError, ValueError, TypeError, KeyError, UsageError) as error:
        raise DataError(f"{path}: not the configuration of a lineage run ({error}).") from None
