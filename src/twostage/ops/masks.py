"""Masks as COCO's run-length codes (RLE) and polygons, through faster-coco-eval's mask functions.

An RLE is `{"size": [h, w], "counts": bytes}`: lengths of runs of 0 and 1 in turn, column by column. Letters: n masks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy.typing import NDArray

from twostage.errors import DataError

_PIXELS = 1 << 28  # of an image; a file may claim any size, and decoding would allocate it
_LENGTH = 1 << 24  # px, of a polygon's outline, for the same reason


class RLE(TypedDict):
    """A mask: its height and width, and its runs in COCO's compressed code."""

    size: list[int]
    counts: bytes


def encode(masks: Bool[np.ndarray, "n h w"] | UInt8[np.ndarray, "n h w"]) -> list[RLE]:
    """One RLE for each mask; what is not 0 is inside."""
    from faster_coco_eval.core import mask as coco

    columns = np.asfortranarray(masks.transpose(1, 2, 0) != 0).view(np.uint8)
    rles: list[RLE] = coco.encode(columns) if masks.size else [_empty(*masks.shape[1:]) for _ in masks]
    return rles


def decode(rles: Sequence[RLE]) -> Bool[np.ndarray, "n h w"]:
    """The masks of RLEs of one size, (0, 0, 0) for none. Raises DataError on a malformed one and on other sizes."""
    from faster_coco_eval.core import mask as coco

    rles = [checked(rle) for rle in rles]
    if not rles:
        return np.zeros((0, 0, 0), dtype=bool)
    height, width = _one_size(rles)
    if not height * width:
        return np.zeros((len(rles), height, width), dtype=bool)
    masks: NDArray = np.asarray(coco.decode(list(rles)), dtype=bool)
    return masks.transpose(2, 0, 1)


def from_polygons(polygons: Sequence[Sequence[int | float]], height: int, width: int) -> RLE:
    """The union of polygons, each x1, y1, x2, y2, ... in pixels, at least three points.

    Raises DataError on fewer, on an odd count, on what is no finite number, and on outlines of absurd length.
    """
    from faster_coco_eval.core import mask as coco

    points = [_points(polygon) for polygon in polygons]
    if not points or not height * width:
        return _empty(height, width)
    rle: RLE = coco.merge(coco.frPyObjects([p.ravel().tolist() for p in points], height, width))
    return rle


def checked(rle: Mapping[str, Any]) -> RLE:
    """The RLE with its counts as compressed bytes, from bytes, text or a list of run lengths, as COCO files hold them.

    Raises DataError if it is not one: the native code that reads it trusts its input.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise DataError(f"a mask needs size [height, width] and counts, got {_short(rle)}") from None
    if height < 0 or width < 0 or height * width > _PIXELS:
        raise DataError(f"a mask of {height} x {width} pixels is not possible (at most {_PIXELS})")
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "replace")
    if isinstance(counts, bytes):
        runs = _runs(counts)
    else:
        runs, counts = _whole(counts), b""
    # Each by itself first: a sum of huge ones may wrap to the right number.
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        total = sum(runs.tolist())
        raise DataError(f"the runs of a mask of {height} x {width} pixels must add up to them, got {total}")
    return {"size": [height, width], "counts": counts or _compressed(runs.tolist())}


def area(rles: Sequence[RLE]) -> Int[np.ndarray, " n"]:
    """Pixels inside each mask. Raises DataError on a malformed one."""
    runs = (_runs(checked(rle)["counts"]) for rle in rles)
    return np.array([r[1::2].sum() for r in runs], dtype=np.int64)


def boxes(rles: Sequence[RLE]) -> Float32[np.ndarray, "n 4"]:
    """The smallest xyxy box around each mask, zeros for an empty one. Raises DataError on a malformed one."""
    from faster_coco_eval.core import mask as coco

    rles = [checked(rle) for rle in rles]
    if not rles:
        return np.zeros((0, 4), dtype=np.float32)
    found: NDArray = np.asarray(coco.toBbox(list(rles)), dtype=np.float32).reshape(-1, 4)
    found[:, 2:] += found[:, :2]
    return found


def iou(a: Sequence[RLE], b: Sequence[RLE], crowd: Bool[np.ndarray, " m"] | None = None) -> Float[np.ndarray, "n m"]:
    """IoU of all pairs of masks of one size; for a `crowd` of b the union is a's own area, as COCO counts it.

    Raises DataError on a malformed mask and on other sizes.
    """
    from faster_coco_eval.core import mask as coco

    a, b = [checked(rle) for rle in a], [checked(rle) for rle in b]
    if not a or not b:
        return np.zeros((len(a), len(b)))
    _one_size([*a, *b])
    flags = [0] * len(b) if crowd is None else [int(c) for c in crowd]
    return np.asarray(coco.iou(list(a), list(b), flags), dtype=np.float64).reshape(len(a), len(b))


def cropped(rle: RLE) -> tuple[int, int, UInt8[np.ndarray, "h w"]]:
    """Where a mask begins, left and top, and its pixels from there to its end; no pixels where it is empty.

    Only the columns that it covers are written, whatever the size of its image. The RLE must be sound, as `checked`.
    """
    from faster_coco_eval.core import mask as coco

    x, y, across, down = (int(v) for v in np.asarray(coco.toBbox([rle])).reshape(-1, 4)[0])
    height = rle["size"][0]
    if not across * down:
        return x, y, np.zeros((0, 0), dtype=np.uint8)
    changes = np.cumsum(_runs(rle["counts"])) - x * height  # to 1, to 0, to 1 ...
    pairs = changes[: len(changes) // 2 * 2].clip(0, across * height)
    # A run of no pixels changes twice at one place, which is no change.
    changed = np.bincount(pairs, minlength=across * height + 1)[:-1] & 1
    inside = np.bitwise_xor.accumulate(changed.astype(np.uint8)).reshape(across, height)
    return x, y, np.ascontiguousarray(inside[:, y : y + down].T)


def _one_size(rles: Sequence[RLE]) -> list[int]:
    size = rles[0]["size"]
    for rle in rles:
        if rle["size"] != size:
            raise DataError(f"masks of one image must have one size, got {size} and {rle['size']}")
    return size


def _points(polygon: Any) -> Float[np.ndarray, "k 2"]:
    try:
        flat = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"a polygon must be a list of numbers x1, y1, x2, y2, ..., got {_short(polygon)}") from None
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2:
        raise DataError(f"a polygon needs three points or more, x and y of each; got {_short(polygon)}")
    if not np.isfinite(flat).all():
        raise DataError(f"a polygon holds a coordinate that is no finite number: {_short(polygon)}")
    points = flat.reshape(-1, 2)
    if np.abs(points - np.roll(points, 1, axis=0)).sum() > _LENGTH or np.abs(points).max() > _LENGTH:
        raise DataError(f"a polygon lies absurdly far outside any image: {_short(polygon)}")
    return points


def _runs(counts: bytes) -> Int[np.ndarray, " k"]:
    """Run lengths from COCO's code: 5 bits a letter, one for "goes on"; from the fourth on less the last but one."""
    if not counts:
        return np.zeros(0, dtype=np.int64)
    letters = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    more = (letters & 0x20) != 0
    if (letters < 0).any() or (letters > 63).any() or more[-1]:
        raise DataError(f"the counts of a mask are not COCO's code: {_short(counts)}")
    ends = np.flatnonzero(~more)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts > 6).any():
        raise DataError(f"the counts of a mask hold a run too long to be true: {_short(counts)}")
    places = np.arange(len(letters)) - np.repeat(starts, ends - starts + 1)
    runs = np.add.reduceat((letters & 0x1F) << (5 * places), starts)
    negative = (letters[ends] & 0x10) != 0
    runs -= np.where(negative, np.int64(1) << (5 * (ends - starts + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _whole(counts: Any) -> Int[np.ndarray, " k"]:
    try:
        runs = np.asarray(counts)
    except (TypeError, ValueError):
        runs = np.zeros((1, 1))
    if runs.ndim != 1 or (len(runs) and runs.dtype.kind not in "iu"):
        raise DataError(f"the counts of a mask must be COCO's code or a list of whole numbers, got {_short(counts)}")
    return runs.astype(np.int64)


def _compressed(runs: Sequence[int]) -> bytes:
    """COCO's code of run lengths."""
    out = bytearray()
    for k, run in enumerate(runs):
        value = run - runs[k - 2] if k > 2 else run
        more = True
        while more:
            letter, value = value & 0x1F, value >> 5
            more = value != (-1 if letter & 0x10 else 0)
            out.append(48 + letter + 0x20 * more)
    return bytes(out)


def _empty(height: int, width: int) -> RLE:
    return {"size": [height, width], "counts": _compressed([height * width] if height * width else [])}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
