"""The data of the page: everything of a trace that it shows, small enough for one file.

Boxes are on the pixels of the batch, exact, as the library suppresses them; `batch.factors` brings them to those of the
image. Truth is on the pixels of the image.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from twostage.drawing import colour_of
from twostage.inspection.account import Objects
from twostage.inspection.causes import Account, Miss
from twostage.inspection.page.anchors import anchors_data, level_name
from twostage.inspection.page.columns import column
from twostage.inspection.page.grids import Shapes, map_shapes
from twostage.inspection.page.regions import masks_data, pairs_data, regions_data
from twostage.inspection.remedy import Remedy
from twostage.inspection.trace import Trace
from twostage.inspection.words import cause_in_words, remedy_to_dict
from twostage.models.config import OneStageConfig, StagewiseConfig, TwoStageConfig
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.models.rcnn import WarpConfig

Json = dict[str, Any]

_LONGEST = 1600  # pixels of the picture on the page
_QUALITY = 85


def page_data(
    trace: Trace,
    config: PostprocessConfig,
    objects: Objects | None = None,
    account: Account | None = None,
    remedies: Mapping[int, Remedy] | None = None,
    *,
    title: str = "",
) -> Json:
    """The data of a trace as plain values (`columns.column` for numbers).

    `config` is the post-processing that the page begins with. `objects` are those of the image, `account` says why some
    of them were missed under `config`, and `remedies` what would have kept those, where it was tried.
    """
    maps = _maps(trace)
    shapes: Shapes = [(one["rows"], one["columns"]) for one in maps]
    if not trace.stages.maps:  # of an exported file
        shapes = map_shapes(trace.model.backbone, trace.batch.canvas)
    height, width = trace.image.shape[:2]
    factors = trace.batch.before.factors[0].float()
    return {
        "title": title,
        "family": family(trace),
        "names": list(trace.names),
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour_of(label)) for label in range(len(trace.names))],
        "image": {"width": width, "height": height, "picture": picture(trace.image)},
        "batch": {"size": trace.batch.sizes[0].tolist(), "factors": factors.tolist()},
        "source": _source(trace),
        "settings": _settings(trace, config),
        "maps": maps,
        "anchors": anchors_data(trace),
        "regions": regions_data(trace, shapes),
        "pairs": pairs_data(trace, config),
        "masks": masks_data(trace),
        "truth": None if objects is None else _truth(objects, account, remedies or {}, trace.names),
    }


def family(trace: Trace) -> str:
    """The detector's name in the literature."""
    config = trace.config
    if isinstance(config, OneStageConfig):
        return "RetinaNet"
    if isinstance(config, StagewiseConfig):
        return "R-CNN" if isinstance(config.regions, WarpConfig) else "SPPnet"
    if config.htc is not None:
        return "Hybrid Task Cascade"
    if config.cascade is not None:
        return "Cascade R-CNN" if config.mask is None else "Cascade Mask R-CNN"
    if config.mask is not None:
        return "Mask R-CNN"
    return "Fast R-CNN" if config.rpn is None else "Faster R-CNN"


def picture(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """The image as a JPEG in a data URI, its longest side at most 1600 pixels."""
    small = Image.fromarray(image)
    small.thumbnail((_LONGEST, _LONGEST))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _source(trace: Trace) -> str | None:
    """Where proposals come from, if from no RPN."""
    config = trace.config
    if isinstance(config, OneStageConfig) or (isinstance(config, TwoStageConfig) and config.rpn is not None):
        return None
    return str(config.proposals.source)


def _settings(trace: Trace, config: PostprocessConfig) -> Json:
    """The settings that the page's controls begin with."""
    rpn = trace.config.rpn if isinstance(trace.config, TwoStageConfig) else None
    settings: Json = {
        "score": config.score_threshold,
        "nms": config.nms,
        "across": config.nms_across_classes,
        "soft": config.soft_nms,
        "sigma": config.soft_nms_sigma,
        "softFloor": config.soft_nms_min_score,
        "most": config.max_det,
        "minSide": config.min_box_size,
        "candidates": config.candidates,
        "rpn": None,
        "top": trace.config.retinanet.top if isinstance(trace.config, OneStageConfig) else None,
    }
    if rpn is not None and isinstance(trace.config, TwoStageConfig):
        settings["rpn"] = {"top": rpn.top_test, "nms": rpn.nms, "keep": trace.config.proposals.keep_test}
    return settings


def _maps(trace: Trace) -> list[Json]:
    """The maps that regions or anchors read: the mean size of a cell's features, a byte for each cell.

    [] of an exported file, which gives none, and of R-CNN, which has none.
    """
    config, maps = trace.config, list(trace.stages.maps)
    names: Sequence[str] = ()
    if isinstance(config, StagewiseConfig):
        if isinstance(config.regions, WarpConfig):
            return []
        maps, names = maps[1:], [f"{size} px" for size in config.regions.sizes]
    height, width = trace.batch.canvas
    out = []
    for place, one in enumerate(maps):
        rows, columns = one.shape[2:]
        stride = 2 ** round(float(np.log2(max(1.0, height / rows))))
        size = [height, width] if names else [stride * rows, stride * columns]
        name = names[place] if names else level_name(stride)
        out.append({"name": name, "rows": rows, "columns": columns, "extent": size, "cells": _strength(one[0])})
    return out


def _strength(features: Tensor) -> Json:
    """The mean of the features' absolute values at each cell, stretched to the bytes from 0 to 255."""
    mean = features.float().abs().mean(dim=0).nan_to_num(posinf=0).numpy()
    low, high = np.percentile(mean, (1, 99))
    return column(np.clip((mean - low) / max(high - low, 1e-9), 0, 1) * 255, "u1")


def _truth(objects: Objects, account: Account | None, remedies: Mapping[int, Remedy], names: Sequence[str]) -> Json:
    """The objects of the image, those that were missed with their cause."""
    misses = {} if account is None else account.misses
    missed = {str(place): _miss(one, remedies.get(place), names) for place, one in misses.items()}
    return {
        "boxes": column(objects.boxes, "f4"),
        "labels": column(objects.labels, "i2"),
        "counted": column(objects.counted, "u1"),
        "missed": missed,
    }


def _miss(miss: Miss, remedy: Remedy | None, names: Sequence[str]) -> Json:
    places = {name: value for name, value in miss.detail.items() if name in ("region", "anchor")}
    tried = None if remedy is None else remedy_to_dict(miss, remedy, names)
    return {"cause": str(miss.cause), "words": cause_in_words(miss, names), "remedy": tried, **places}
