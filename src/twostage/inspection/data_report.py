"""How a model's anchors and image size suit a data set, before any training; better anchors."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from twostage.data.dataset import Dataset
from twostage.inspection.anchor_proposal import GAIN, AnchorProposal, objects_needed, propose_anchors
from twostage.inspection.anchor_reach import (
    SIZES,
    AnchorModelConfig,
    AnchorPositions,
    anchor_positions,
    best_iou,
    shares,
    shares_by_class,
    shares_by_size,
    used_objects,
    zoo_anchor_sets,
)
from twostage.inspection.image_sizes import image_sizes


def anchor_report(dataset: Dataset, model: str, config: AnchorModelConfig) -> dict[str, Any]:
    """The shares of objects that the anchors of a model reach, as plain values for JSON (docs/anchors.md has the keys).

    Crowd and difficult objects are left out. Raises UsageError where the anchor sizes do not fit the model's levels.
    """
    used = used_objects(dataset)
    anchors = config.anchors
    assert anchors is not None
    positions = anchor_positions(dataset, config)
    present = best_iou(positions, config)
    return {
        "model": model,
        "split": dataset.split,
        "size": config.image.size,
        "max_size": config.image.max_size,
        "anchor_sizes": anchors.sizes,
        "anchor_ratios": anchors.ratios,
        "strides": positions.strides,
        **shares_by_size(present[used], dataset.areas[used]),
        "classes": shares_by_class(dataset, present, used),
        "zoo": [_zoo_row(dataset, one, models, used) for one, models in zoo_anchor_sets()],
        "objects_needed": objects_needed(config),
        "proposal": _proposal(dataset, positions, config, used, present),
    }


def image_size_report(dataset: Dataset, config: AnchorModelConfig, own: int) -> list[dict[str, Any]]:
    """`image_sizes` of the objects that are neither crowd nor difficult."""
    return image_sizes(dataset, config, used_objects(dataset), own)


def _zoo_row(
    dataset: Dataset, config: AnchorModelConfig, models: list[str], used: Bool[np.ndarray, " b"]
) -> dict[str, Any]:
    anchors = config.anchors
    assert anchors is not None
    positions = anchor_positions(dataset, config)
    reached = shares(best_iou(positions, config)[used])
    return {
        "models": models,
        "size": config.image.size,
        "max_size": config.image.max_size,
        "anchor_sizes": anchors.sizes,
        "anchor_ratios": anchors.ratios,
        "strides": positions.strides,
        "iou50": reached["iou50"],
        "iou70": reached["iou70"],
    }


def _proposal(
    dataset: Dataset,
    positions: AnchorPositions,
    config: AnchorModelConfig,
    used: Bool[np.ndarray, " b"],
    present: Float64[np.ndarray, " b"],
) -> dict[str, Any] | None:
    found = propose_anchors(positions, config, used, present)
    if found is None:
        return None
    reached = shares(found.iou[used])
    return {
        **found.fields(),
        "flags": found.flags(),
        "iou50": reached["iou50"],
        "iou70": reached["iou70"],
        "loses": _losses(dataset, found, used, present),
    }


def _losses(
    dataset: Dataset, found: AnchorProposal, used: Bool[np.ndarray, " b"], present: Float64[np.ndarray, " b"]
) -> dict[str, list[float]]:
    """The sizes and classes of which a proposal reaches clearly fewer at IoU 0.5: the share now, and then."""

    def groups(iou: Float64[np.ndarray, " b"]) -> dict[str, dict[str, float]]:
        by_size = shares_by_size(iou[used], dataset.areas[used])
        return {**{f"{name} objects": by_size[name] for name in SIZES}, **shares_by_class(dataset, iou, used)}

    now, then = groups(present), groups(found.iou)
    pairs = {name: [now[name]["iou50"], then[name]["iou50"]] for name in now}
    return {name: pair for name, pair in pairs.items() if pair[0] - pair[1] > GAIN}
