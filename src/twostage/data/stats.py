"""`data stats`: numbers and sizes of objects, and how well anchors fit them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from twostage.data.census import ANCHOR_SIZES, anchor_reach, resized_sides
from twostage.data.dataset import Dataset
from twostage.data.resize import Resize

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SMALL, MEDIUM = 32.0**2, 96.0**2  # pixels of area, COCO's borders
# Smallest of five anchor sizes that double; on a tie the common one, which is first, wins.
SMALLEST_ANCHORS = (32, 16, 24, 48, 8, 12, 64, 4, 6)


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
    anchor_reach: float
    best_anchors: list[int]
    best_reach: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(vars(self))


def stats(dataset: Dataset, resize: Resize) -> Stats:
    """The statistics of a split whose images will be resized by `resize`."""
    per_image = np.diff(dataset.offsets)
    sides = (dataset.boxes[:, 2:] - dataset.boxes[:, :2]).astype(np.float64)
    resized = resized_sides(dataset, resize)
    reach, best, best_reach = _anchors(resized)
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
        anchor_reach=reach,
        best_anchors=best,
        best_reach=best_reach,
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


def _anchors(sides: Float64[np.ndarray, "b 2"]) -> tuple[float, list[int], float]:
    """The share of objects that the common anchors match, and the five doubling sizes that match most."""
    if not len(sides):
        return -1.0, list(ANCHOR_SIZES), -1.0
    reach = {smallest: anchor_reach(sides, _doubling(smallest)) for smallest in SMALLEST_ANCHORS}
    best = max(SMALLEST_ANCHORS, key=lambda smallest: reach[smallest])
    return round(reach[ANCHOR_SIZES[0]], 4), list(_doubling(best)), round(reach[best], 4)


def _doubling(smallest: int) -> Sequence[int]:
    return [smallest * 2**level for level in range(len(ANCHOR_SIZES))]


def _quantiles(values: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in np.quantile(values, QUANTILES)] if len(values) else []
