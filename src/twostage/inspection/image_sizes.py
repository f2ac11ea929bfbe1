"""What the size of images at the input of a model costs: small objects, anchors without a match, pixels."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from twostage.data.dataset import Dataset
from twostage.inspection.anchor_reach import (
    UNDEFINED,
    AnchorModelConfig,
    anchor_positions,
    best_iou,
    canvas_shapes,
    has_anchors,
    resized_boxes,
    shares,
)
from twostage.models.configure import configure
from twostage.models.image import ImageConfig

FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the model's size
TINY = (8, 16)  # pixels of the shorter side


def image_sizes(
    dataset: Dataset, config: AnchorModelConfig, used: Bool[np.ndarray, " b"], own: int
) -> list[dict[str, Any]]:
    """A row for each of `FACTORS` of `own`, the model's size, whose pixels are 1, and `now` for that of the
    configuration, which may be larger (see `image_size_row`).

    Images larger than their files have no more detail, but more positions on the maps of the network.
    """
    sizes = sorted({config.image.size, *(max(1, round(factor * own)) for factor in FACTORS)})
    rows = [image_size_row(dataset, configure(config, {"size": size}), used) for size in sizes]
    unit = next(row["pixels"] for row in rows if row["size"] == own)
    return [
        {
            **row,
            "pixels": round(row["pixels"] / unit, 3) if unit else UNDEFINED,
            "now": row["size"] == config.image.size,
        }
        for row in rows
    ]


def image_size_row(dataset: Dataset, config: AnchorModelConfig, used: Bool[np.ndarray, " b"]) -> dict[str, Any]:
    """The objects `used` on images resized by a model's rule: the median of the square roots of their areas, the shares
    whose shorter side is below `TINY` pixels, those that an anchor reaches, and the mean number of pixels per canvas.
    """
    image = config.image
    assert isinstance(image, ImageConfig)
    boxes, shapes = resized_boxes(dataset, image.resizing)
    sides = (boxes[:, 2:] - boxes[:, :2])[used]
    iou: Float64[np.ndarray, " b"] = np.zeros(0)
    if has_anchors(config):
        iou = best_iou(anchor_positions(dataset, config), config)[used]
    reached = shares(iou)
    return {
        "size": image.size,
        "max_size": image.max_size,
        "median_side": round(float(np.median(np.sqrt(sides.prod(axis=1)))), 1) if len(sides) else UNDEFINED,
        **{f"below_{least}": _share(sides.min(axis=1) < least) for least in TINY},
        "iou50": reached["iou50"],
        "iou70": reached["iou70"],
        "pixels": float(canvas_shapes(shapes, image.divisor).prod(axis=1).mean()) if len(shapes) else 0.0,
    }


def _share(flags: Bool[np.ndarray, " b"]) -> float:
    return round(float(flags.mean()), 4) if len(flags) else UNDEFINED
