"""`twostage lineage`: the history of the family on one data set.

1. Proposals of all pictures. 2. One backbone, a classifier of crops. 3. Every detector from there; a row for each.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from twostage.atomic import write_text
from twostage.device import choose_device
from twostage.experiments.begin import (
    BACKBONE,
    PROPOSALS,
    Setting,
    begin,
    begin_backbone,
    begun_net,
    rcnn,
    setting_of,
    trained,
)
from twostage.experiments.options import LineageOptions
from twostage.experiments.rows import Named, Row, Shown, detector_row, kept, stagewise_row
from twostage.experiments.small import pyramid_net, stagewise
from twostage.folders import claimed
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
        shown = Shown(options.timed, _crowded(setting))
        backbone = kept(root, "backbone", lambda: _backbone(setting))
        rows = []
        for key in options.only:
            log.info("%s", key)
            row = kept(root, key, lambda key=key: _DETECTORS[key](setting, shown, key))  # type: ignore[misc]
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
        "shown": str(val.path(shown.drawn)),
    }
    write_text(root / "lineage.json", json.dumps(result, indent=2) + "\n")
    return result


def _crowded(setting: Setting) -> int:
    """An image of the validation split with many objects, but not too many to see."""
    assert setting.splits.val is not None
    return int(np.argmax(np.minimum(np.diff(setting.splits.val.offsets), 12)))


def _backbone(setting: Setting) -> Row:
    detail, seconds = begin_backbone(setting)
    return Row("backbone", "Backbone", {}, seconds, 0.0, 0.0, detail, BACKBONE)


def _rcnn(setting: Setting, shown: Shown, key: str) -> Row:
    begun = time.perf_counter()
    model = rcnn(setting, setting.options.seed)
    seconds = time.perf_counter() - begun
    named = Named(key, "R-CNN", "every window through the network, SVMs, ridge")
    return stagewise_row(setting, shown, model, named, seconds)


def _sppnet(setting: Setting, shown: Shown, key: str) -> Row:
    options, names = setting.options, setting.names
    five = key.endswith("5_scales")
    begun = time.perf_counter()
    model = train_sppnet(
        pyramid_net(begun_net(setting), len(names), options.size, five=five).to(choose_device(options.device)),
        partial(stagewise, num_classes=len(names)),
        setting.splits.train,
        setting.train,
        Bounds(options.learn_images, options.windows, options.seed),
        # Only two layers learn: a third of the time.
        TuneSettings(minutes=options.minutes / 3, lr=5e-4, seed=options.seed),
        FitSettings(pair=0.5, seed=options.seed),
    )
    seconds = time.perf_counter() - begun
    name = "SPPnet, five scales" if five else "SPPnet"
    named = Named(key, name, "the map once, pyramid 6-3-2-1, fixed convolutions")
    return stagewise_row(setting, shown, model, named, seconds)


def _zoo(setting: Setting, shown: Shown, named: Named, model: str, **changes: Any) -> Row:
    """A detector of the zoo, trained as `twostage train` does."""
    result = trained(setting, setting.root / named.key, model, **changes)
    return detector_row(setting, shown, Path(result["weights"]), named, result["seconds"])


def _fast(setting: Setting, shown: Shown, key: str) -> Row:
    named = Named(key, "Fast R-CNN", "RoIPool, one loss for classes and boxes")
    return _zoo(setting, shown, named, "fast_rcnn_tiny", proposals=setting.root / PROPOSALS)


def _alternating(setting: Setting, shown: Shown, key: str) -> Row:
    named = Named(key, "Faster R-CNN, four steps", "the network proposes; its steps share convolutions in the end")
    twice = 2 * setting.options.minutes
    return _zoo(setting, shown, named, "faster_rcnn_tiny", scheme="alternating", minutes=twice)


def _joint(setting: Setting, shown: Shown, key: str) -> Row:
    named = Named(key, "Faster R-CNN, joint", "proposals and detections learned together")
    return _zoo(setting, shown, named, "faster_rcnn_tiny")


def _fpn(setting: Setting, shown: Shown, key: str) -> Row:
    named = Named(key, "Faster R-CNN + FPN", "anchors and regions on the level of their size, RoIAlign")
    return _zoo(setting, shown, named, "faster_rcnn_tiny_fpn")


_DETECTORS: dict[str, Callable[[Setting, Shown, str], Row]] = {
    "rcnn": _rcnn,
    "sppnet": _sppnet,
    "sppnet_5_scales": _sppnet,
    "fast_rcnn": _fast,
    "faster_rcnn_alternating": _alternating,
    "faster_rcnn_joint": _joint,
    "faster_rcnn_fpn": _fpn,
}
