"""Suspect masks: those without a pixel in their image, and those that hardly overlap their boxes."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, fault
from twostage.data.flat import POLYGONS, Mask, to_rle, unpack_polygons
from twostage.ops.masks import area, bounding_box

CLEAR = 4.0  # square pixels; a polygon of this area, two pixels wide and high, covers the centre of some pixel
APART = 0.5  # IoU of a box and the bounding box of its mask, below which one of them is suspect


def mask_faults(dataset: Dataset) -> Iterator[Fault]:
    """The faults of a split's masks, per object; the reader reports objects without a mask."""
    if dataset.masks is None:
        return
    unlearned = dataset.crowd | dataset.difficult | dataset.unmasked
    for index in range(len(dataset)):
        height, width = dataset.sizes[index].tolist()
        for row in range(int(dataset.offsets[index]), int(dataset.offsets[index + 1])):
            where = f"object {row - int(dataset.offsets[index]) + 1} (id {dataset.annotation_ids[row]})"
            if unlearned[row]:
                continue
            extent = _extent(dataset.masks[row], height, width)
            if extent is None:
                message = "the mask has no pixel in its image: only its box is used"
                fix = "Draw it again, or train a model with masks with --on-error skip"
                yield fault("empty-mask", dataset.file_name(index), where, message, fix)
            elif _iou(extent, dataset.boxes[row].astype(np.float64)) < APART:
                covered = ", ".join(f"{v:.7g}" for v in extent)
                box = ", ".join(f"{v:.7g}" for v in dataset.boxes[row])
                message = f"the mask covers xyxy [{covered}], the box [{box}]"
                yield fault("mask-elsewhere", dataset.file_name(index), where, message, "Check which of them is right")


def _extent(mask: Mask, height: int, width: int) -> Float[np.ndarray, "4"] | None:
    """The bounding box of a mask's pixels, None if there are none; only doubtful polygons are rasterised."""
    if mask.kind == POLYGONS:
        rings = [ring.reshape(-1, 2) for ring in unpack_polygons(mask.data)]
        points = np.concatenate(rings)
        low, high = points.min(axis=0), points.max(axis=0)
        within = (low >= 0).all() and (high <= [width, height]).all()
        if within and any(_area(ring) >= CLEAR and np.ptp(ring, axis=0).min() >= 2 for ring in rings):
            return np.concatenate([low, high])
    rle = to_rle(mask, height, width)
    x, y, across, down = bounding_box(rle)
    return np.array([x, y, x + across, y + down], dtype=np.float64) if area(rle) else None


def _area(ring: Float[np.ndarray, "p 2"]) -> float:
    """The area of a ring in square pixels."""
    x, y = ring.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _iou(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "4"]) -> float:
    shared = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0).prod()
    whole = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).clip(min=0).prod() - shared
    return float(shared / whole) if whole > 0 else 1.0
