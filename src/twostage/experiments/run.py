"""`twostage lineage`: every detector of the family on one data set.

1. Selective search on all images. 2. One backbone, trained as a classifier of crops. 3. Every detector from there.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage.atomic import write_text
from twostage.detector import Detector
from twostage.device import choose_device
from twostage.experiments import begin
from twostage.experiments.begin import Setting, load_or_make
from twostage.experiments.options import LineageOptions
from twostage.experiments.rows import Row, drawn_image, make_row
from twostage.experiments.small import sppnet_model
from twostage.models.two_stage import TwoStage
from twostage.training.stagewise.fit import FitSettings
from twostage.training.stagewise.train import Bounds, train_stages
from twostage.training.stagewise.tune import TuneSettings

log = logging.getLogger("twostage.lineage")

Trained = tuple[Path, float]
"""The weights of a trained detector, and the seconds that its own stages took."""


def lineage(options: LineageOptions) -> dict[str, Any]:
    """Train, score and time the detectors; returns {"out", "backbone", "rows", "images", "settings", ...}.

    Raises MissingError without the extra `lineage`, and as `twostage.training.train`.
    """
    with begin.comparison(options, "lineage") as setting:
        options, root, train, val = setting.options, setting.root, setting.train, setting.val
        backbone = load_or_make(root / "rows" / "backbone.json", lambda: _backbone(setting))
        rows = []
        for key in options.only:
            log.info("%s", key)
            row = load_or_make(root / "rows" / f"{key}.json", partial(_row, setting, key))
            rows.append(row)
            log.info("%s: AP50 %.3f, voc07 %.3f", row["name"], row["metrics"]["AP50"], row["metrics"]["voc07"])
    result = {
        "out": str(root),
        "data": str(train.root),
        "images": {"train": len(train), "val": len(val), "learned": min(options.learn_images, len(train))},
        "settings": {name: getattr(options, name) for name in ("size", "windows", "minutes", "seed")},
        "proposals_an_image": float(np.minimum(np.diff(setting.val_proposals.offsets), options.windows).mean()),
        "backbone": backbone,
        "rows": rows,
        "shown": str(val.path(drawn_image(val))),
    }
    write_text(root / "lineage.json", json.dumps(result, indent=2) + "\n")
    return result


def _backbone(setting: Setting) -> dict[str, Any]:
    detail, seconds = begin.begin_backbone(setting)
    return asdict(Row("backbone", "Backbone", {}, seconds, 0.0, 0.0, detail, begin.BACKBONE))


def _row(setting: Setting[LineageOptions], key: str) -> dict[str, Any]:
    one = _DETECTORS[key]
    return asdict(make_row(setting, key, one.name, one.detail, *one.train(setting, setting.root / key)))


def _rcnn(setting: Setting, folder: Path) -> Trained:
    started = time.perf_counter()
    return _saved(setting, folder, begin.rcnn(setting, setting.options.seed), "rcnn_tiny", started)


def _sppnet(setting: Setting, folder: Path, *, five: bool) -> Trained:
    options = setting.options
    started = time.perf_counter()
    model = sppnet_model(begin.pretrained_rcnn(setting), options.size, five=five).to(choose_device(options.device))
    train_stages(
        model,
        setting.train,
        setting.train_proposals,
        Bounds(options.learn_images, options.windows, options.seed),
        # Only two layers are trained: a third of the time.
        TuneSettings(minutes=options.minutes / 3, lr=5e-4, seed=options.seed),
        FitSettings(pair=0.5, seed=options.seed),
    )
    return _saved(setting, folder, model, "sppnet_tiny_5_scales" if five else "sppnet_tiny", started)


def _saved(setting: Setting, folder: Path, model: TwoStage, zoo_name: str, started: float) -> Trained:
    """Save a detector trained stage by stage."""
    seconds = time.perf_counter() - started
    weights = folder / "weights.safetensors"
    Detector(model, zoo_name, setting.train.names, device=setting.options.device).save(weights)
    return weights, seconds


def _zoo(setting: Setting, folder: Path, model: str, **changes: Any) -> Trained:
    """A detector of the zoo, trained as `twostage train` does."""
    result = begin.trained(setting, folder, model, **changes)
    return Path(result["weights"]), result["seconds"]


def _fast(setting: Setting, folder: Path) -> Trained:
    return _zoo(setting, folder, "fast_rcnn_tiny", proposals=setting.root / begin.PROPOSALS)


def _alternating(setting: Setting, folder: Path) -> Trained:
    twice = 2 * setting.options.minutes
    return _zoo(setting, folder, "faster_rcnn_tiny", scheme="alternating", minutes=twice)


class Member(NamedTuple):
    """A detector of the family: its name, what it consists of, and its training into a folder."""

    name: str
    detail: str
    train: Callable[[Setting, Path], Trained]


_SPPNET = "the map once, pyramid 6-3-2-1, fixed convolutions"
_DETECTORS = {
    "rcnn": Member("R-CNN", "every window through the network, SVMs, ridge", _rcnn),
    "sppnet": Member("SPPnet", _SPPNET, partial(_sppnet, five=False)),
    "sppnet_5_scales": Member("SPPnet, five scales", _SPPNET, partial(_sppnet, five=True)),
    "fast_rcnn": Member("Fast R-CNN", "RoIPool, one loss for classes and boxes", _fast),
    "faster_rcnn_alternating": Member(
        "Faster R-CNN, four steps", "an RPN, which shares its convolutions in the end", _alternating
    ),
    "faster_rcnn_joint": Member(
        "Faster R-CNN, joint", "RPN and detector trained together", partial(_zoo, model="faster_rcnn_tiny")
    ),
    "faster_rcnn_fpn": Member(
        "Faster R-CNN + FPN",
        "anchors and regions on the level of their size, RoIAlign",
        partial(_zoo, model="faster_rcnn_tiny_fpn"),
    ),
}
