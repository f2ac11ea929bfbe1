"""`twostage lineage`: every detector of the family on one data set.

1. Selective search on all images. 2. One backbone, trained as a classifier of crops. 3. Every detector from there.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from twostage.atomic import write_text
from twostage.detector import Detector
from twostage.device import choose_device
from twostage.experiments.begin import (
    BACKBONE,
    PROPOSALS,
    Setting,
    begin,
    begin_backbone,
    pretrained_rcnn,
    rcnn,
    setting_of,
    trained,
)
from twostage.experiments.options import LineageOptions
from twostage.experiments.rows import Examples, Named, Row, load_or_make, make_row
from twostage.experiments.small import sppnet_model
from twostage.folders import claimed
from twostage.models.two_stage import TwoStage
from twostage.training.stagewise.fit import FitSettings
from twostage.training.stagewise.train import Bounds, train_sppnet
from twostage.training.stagewise.tune import TuneSettings

log = logging.getLogger("twostage.lineage")


def lineage(options: LineageOptions) -> dict[str, Any]:
    """Train, score and time the detectors; returns {"out", "backbone", "rows", "images", "settings", ...}.

    Raises MissingError without the extra `lineage`, and as `twostage.training.train`.
    """
    options, root, splits = begin(options, "lineage")
    with claimed(root / "state"):
        setting = setting_of(options, root, splits)
        examples = Examples(options.timed, _crowded(setting))
        backbone = load_or_make(root, "backbone", lambda: _backbone(setting))
        rows = []
        for key in options.only:
            log.info("%s", key)
            row = load_or_make(root, key, lambda key=key: _DETECTORS[key](setting, examples, key))  # type: ignore[misc]
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
        "proposals_an_image": float(np.minimum(np.diff(setting.val.offsets), options.windows).mean()),
        "backbone": asdict(backbone),
        "rows": [asdict(row) for row in rows],
        "shown": str(val.path(examples.drawn)),
    }
    write_text(root / "lineage.json", json.dumps(result, indent=2) + "\n")
    return result


def _crowded(setting: Setting) -> int:
    """The first image of the validation split with the most objects, of which more than 12 count as 12."""
    assert setting.splits.val is not None
    return int(np.argmax(np.minimum(np.diff(setting.splits.val.offsets), 12)))


def _backbone(setting: Setting) -> Row:
    detail, seconds = begin_backbone(setting)
    return Row("backbone", "Backbone", {}, seconds, 0.0, 0.0, detail, BACKBONE)


def _rcnn(setting: Setting, examples: Examples, key: str) -> Row:
    started = time.perf_counter()
    model = rcnn(setting, setting.options.seed)
    named = Named(key, "R-CNN", "every window through the network, SVMs, ridge")
    return _stagewise(setting, examples, model, "rcnn_tiny", named, time.perf_counter() - started)


def _sppnet(setting: Setting, examples: Examples, key: str) -> Row:
    options, five = setting.options, key.endswith("5_scales")
    started = time.perf_counter()
    model = sppnet_model(pretrained_rcnn(setting), options.size, five=five).to(choose_device(options.device))
    train_sppnet(
        model,
        setting.splits.train,
        setting.train,
        Bounds(options.learn_images, options.windows, options.seed),
        # Only two layers are trained: a third of the time.
        TuneSettings(minutes=options.minutes / 3, lr=5e-4, seed=options.seed),
        FitSettings(pair=0.5, seed=options.seed),
    )
    seconds = time.perf_counter() - started
    named = Named(key, "SPPnet, five scales" if five else "SPPnet", "the map once, pyramid 6-3-2-1, fixed convolutions")
    return _stagewise(setting, examples, model, "sppnet_tiny_5_scales" if five else "sppnet_tiny", named, seconds)


def _stagewise(
    setting: Setting, examples: Examples, model: TwoStage, zoo_name: str, named: Named, seconds: float
) -> Row:
    """The row of a detector trained stage by stage; its weights are saved beside those of the others."""
    weights = setting.root / named.key / "weights.safetensors"
    Detector(model, zoo_name, setting.names, device=setting.options.device).save(weights)
    return make_row(setting, examples, weights, named, seconds)


def _zoo(setting: Setting, examples: Examples, named: Named, model: str, **changes: Any) -> Row:
    """A detector of the zoo, trained as `twostage train` does."""
    result = trained(setting, setting.root / named.key, model, **changes)
    return make_row(setting, examples, Path(result["weights"]), named, result["seconds"])


def _fast(setting: Setting, examples: Examples, key: str) -> Row:
    named = Named(key, "Fast R-CNN", "RoIPool, one loss for classes and boxes")
    return _zoo(setting, examples, named, "fast_rcnn_tiny", proposals=setting.root / PROPOSALS)


def _alternating(setting: Setting, examples: Examples, key: str) -> Row:
    named = Named(key, "Faster R-CNN, four steps", "an RPN, which shares its convolutions in the end")
    twice = 2 * setting.options.minutes
    return _zoo(setting, examples, named, "faster_rcnn_tiny", scheme="alternating", minutes=twice)


def _joint(setting: Setting, examples: Examples, key: str) -> Row:
    named = Named(key, "Faster R-CNN, joint", "RPN and detector trained together")
    return _zoo(setting, examples, named, "faster_rcnn_tiny")


def _fpn(setting: Setting, examples: Examples, key: str) -> Row:
    named = Named(key, "Faster R-CNN + FPN", "anchors and regions on the level of their size, RoIAlign")
    return _zoo(setting, examples, named, "faster_rcnn_tiny_fpn")


_DETECTORS: dict[str, Callable[[Setting, Examples, str], Row]] = {
    "rcnn": _rcnn,
    "sppnet": _sppnet,
    "sppnet_5_scales": _sppnet,
    "fast_rcnn": _fast,
    "faster_rcnn_alternating": _alternating,
    "faster_rcnn_joint": _joint,
    "faster_rcnn_fpn": _fpn,
}
