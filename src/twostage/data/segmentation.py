"""COCO's `segmentation`: a mask in JSON, polygons or RLE.

https://cocodataset.org/#format-data, "Object Detection".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from twostage.data.flat import NO_MASK, NONE, POLYGONS, RLE, Mask, pack_polygons, unpack_polygons
from twostage.errors import brief
from twostage.ops.masks import decompress
from twostage.ops.run_lengths import compress

LONGEST_OUTLINE = 10_000_000  # pixels


class SegmentationError(ValueError):
    """Why a `segmentation` is invalid; `fix` is how to fix it."""

    code = "broken-mask"

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def read_segmentation(segmentation: Any, stated: tuple[int, int]) -> Mask:
    """Polygons or RLE, unchanged; `stated` is the image's (height, width), 0 where unknown.

    Raises SegmentationError.
    """
    if segmentation is None or segmentation == []:
        return NO_MASK
    if isinstance(segmentation, list):
        segmentation = _rings(segmentation)
        for ring in segmentation:
            if not isinstance(ring, list) or len(ring) % 2 or not set(map(type, ring)) <= {int, float}:
                raise SegmentationError(f"a polygon is {brief(ring)}, not x, y, x, y ...", "Write numbers in pairs")
            if not _drawable(ring):
                message = f"the polygon {brief(ring)} lies far outside any image"
                raise SegmentationError(message, "Write pixel coordinates of this image")
        # Fewer than three points have no area; COCO's own tools would read four numbers as a box.
        rings = [ring for ring in segmentation if len(ring) >= 6]
        return Mask(POLYGONS, pack_polygons(rings)) if rings else NO_MASK
    return read_run_lengths(segmentation, stated)


def short_polygons(segmentation: Any) -> list[Any]:
    """The polygons of a segmentation that `read_segmentation` leaves out."""
    return [ring for ring in _rings(segmentation) if len(ring) < 6] if isinstance(segmentation, list) else []


def _rings(segmentation: list[Any]) -> list[Any]:
    """The polygons of a list; some tools write a single one without brackets around it."""
    return [segmentation] if segmentation and set(map(type, segmentation)) <= {int, float} else segmentation


def write_segmentation(mask: Mask, height: int, width: int) -> Any:
    """The `segmentation` of a mask on an image of this size; None for no mask."""
    if mask.kind == NONE:
        return None
    if mask.kind == POLYGONS:
        return [ring.tolist() for ring in unpack_polygons(mask.data)]
    return {"size": [height, width], "counts": mask.data.decode()}


def read_run_lengths(segmentation: Any, stated: tuple[int, int]) -> Mask:
    """A mask that must be an RLE, compressed or as numbers, as results files have them. Raises SegmentationError."""
    fix = 'Write {"size": [height, width], "counts": ...} for the size of the image'
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not (isinstance(size, list) and len(size) == 2 and all(_is_count(v) for v in size)):
        raise SegmentationError(f"{brief(segmentation)} is not a run-length mask", fix)
    if min(stated) > 0 and tuple(size) != stated:
        raise SegmentationError(f"the mask is {size[1]} x {size[0]}, its image {stated[1]} x {stated[0]}", fix)
    counts = segmentation.get("counts")
    pixels = size[0] * size[1]
    try:
        # Compiled code that reads an RLE trusts its runs. Python's integers: a sum of huge ones must not wrap.
        runs = decompress(counts).tolist() if isinstance(counts, str | bytes) else counts
        if not isinstance(runs, list) or not set(map(type, runs)) <= {int}:
            raise ValueError("counts are neither text nor whole numbers")
        if min(runs, default=0) < 0:
            raise ValueError(f"counts hold the negative number {min(runs)}")
        if sum(runs) != pixels:
            raise ValueError(f"counts add up to {sum(runs)} pixels, the mask has {pixels}")
    except ValueError as error:
        raise SegmentationError(str(error), fix) from error
    text = counts.encode() if isinstance(counts, str) else counts
    code = text if isinstance(text, bytes) else compress(np.array(runs, dtype=np.int64))
    return Mask(RLE, code, (size[0], size[1]))


def _drawable(ring: Sequence[int | float]) -> bool:
    """Whether the outline of a ring is short enough to be rasterised, which walks along it."""
    if not ring:
        return True
    reach = max(max(ring), -min(ring))
    if not reach < LONGEST_OUTLINE:  # NaN too
        return False
    if reach * 2 * len(ring) < LONGEST_OUTLINE:
        return True
    points = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
    return bool(np.abs(points - np.roll(points, 1, axis=0)).sum() < LONGEST_OUTLINE)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
