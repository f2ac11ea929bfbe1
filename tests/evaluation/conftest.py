"""Small data sets in memory, for tests that need no images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twostage.data.dataset import Dataset
from twostage.data.flat import NO_MASK, RLE, FlatMasks, FlatStrings, Mask


def build_dataset(
    boxes_of: list[list[list[float]]],
    labels_of: list[list[int]],
    *,
    names: tuple[str, ...] = ("object",),
    size: tuple[int, int] = (400, 400),
    crowd: list[bool] | None = None,
    difficult: list[bool] | None = None,
    areas: list[float] | None = None,
    masks: list[dict | None] | None = None,
    image_ids: list[int] | None = None,
    category_ids: list[int] | None = None,
) -> Dataset:
    """A data set whose image i has the boxes `boxes_of[i]` of the classes `labels_of[i]`."""
    counts = [len(boxes) for boxes in boxes_of]
    n, m = sum(counts), len(counts)
    boxes = np.array([box for boxes in boxes_of for box in boxes], dtype=np.float32).reshape(-1, 4)
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    stems = [f"{i:05d}.jpg" for i in range(1, m + 1)]
    return Dataset(
        root=Path(),
        layout="coco",
        split="val",
        names=names,
        category_ids=np.array(category_ids or range(1, len(names) + 1), dtype=np.int64),
        image_ids=np.array(image_ids or range(1, m + 1), dtype=np.int64),
        sizes=np.array([size] * m, dtype=np.int32).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes,
        labels=np.array([label for labels in labels_of for label in labels], dtype=np.int64),
        crowd=np.array(crowd if crowd is not None else [False] * n, dtype=bool),
        difficult=np.array(difficult if difficult is not None else [False] * n, dtype=bool),
        areas=np.array(areas, dtype=np.float64) if areas is not None else sides.prod(axis=1),
        annotation_ids=np.arange(1, n + 1, dtype=np.int64),
        masks=None
        if masks is None
        else FlatMasks.of([NO_MASK if rle is None else Mask(RLE, rle["counts"]) for rle in masks]),
        files=FlatStrings.of(stems),
        paths=FlatStrings.of(stems),
        faults=(),
    )


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """The builder above."""
    return build_dataset
