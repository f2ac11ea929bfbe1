"""`data stats`: numbers and sizes of images and objects."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from twostage.data.census import resized_sides
from twostage.data.dataset import Dataset
from twostage.data.resize import Resize

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SMALL, MEDIUM = 32.0**2, 96.0**2  # pixels of area, COCO's borders


@dataclass(frozen=True)
class Stats:
    """Statistics of one split. Quantiles are those of `QUANTILES`; sides are square roots of box areas, in pixels."""

    split: str
    images: int
    without_objects: int
    objects: int
    crowd: int
    difficult: int
    classes: dict[str, dict[str, float]]
    widths: list[float]
    heights: list[float]
    objects_an_image: list[float]
    sides: list[float]
    resized_sides: list[float]
    aspects: list[float]
    small_medium_large: list[float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(vars(self))


def stats(dataset: Dataset, resize: Resize) -> Stats:
    """The statistics of a split whose images will be resized by `resize`."""
    per_image = np.diff(dataset.offsets)
    sides = (dataset.boxes[:, 2:] - dataset.boxes[:, :2]).astype(np.float64)
    resized = resized_sides(dataset, resize)
    kinds = np.bincount(np.digitize(dataset.areas, (SMALL, MEDIUM)), minlength=3)
    return Stats(
        split=dataset.split,
        images=len(dataset),
        without_objects=int((per_image == 0).sum()),
        objects=len(sides),
        crowd=int(dataset.crowd.sum()),
        difficult=int(dataset.difficult.sum()),
        classes=_classes(dataset, sides),
        widths=_quantiles(dataset.sizes[:, 1]),
        heights=_quantiles(dataset.sizes[:, 0]),
        objects_an_image=_quantiles(per_image),
        sides=_quantiles(np.sqrt(sides.prod(axis=1))),
        resized_sides=_quantiles(np.sqrt(resized.prod(axis=1))),
        aspects=_quantiles(sides[:, 0] / sides[:, 1]),
        small_medium_large=[round(int(n) / len(sides), 4) for n in kinds] if len(sides) else [],
    )


def smallest(dataset: Dataset, count: int) -> Int64[np.ndarray, " i"]:
    """At most `count` images with the smallest objects, the smallest first."""
    order = dataset.image_indices[np.argsort((dataset.boxes[:, 2:] - dataset.boxes[:, :2]).prod(axis=1), kind="stable")]
    _, first = np.unique(order, return_index=True)
    return order[np.sort(first)][:count]


def most_crowded(dataset: Dataset, count: int) -> Int64[np.ndarray, " i"]:
    """At most `count` images with most objects, those with most first."""
    return np.argsort(-np.diff(dataset.offsets), kind="stable")[:count]


def _classes(dataset: Dataset, sides: Float64[np.ndarray, "b 2"]) -> dict[str, dict[str, float]]:
    image, rows = dataset.image_indices, {}
    for label, name in enumerate(dataset.names):
        own = dataset.labels == label
        median = round(float(np.median(np.sqrt(sides[own].prod(axis=1)))), 1) if own.any() else -1.0
        rows[name] = {"objects": int(own.sum()), "images": len(np.unique(image[own])), "median_side": median}
    return rows


def _quantiles(values: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in np.quantile(values, QUANTILES)] if len(values) else []
