"""Masks as COCO's run-length codes (`ops.run_lengths`), through faster-coco-eval's mask functions.

Letters: n masks, k runs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8
from numpy.typing import NDArray

from twostage.errors import brief
from twostage.ops.run_lengths import RLE


def encode(masks: Bool[np.ndarray, "n h w"] | UInt8[np.ndarray, "n h w"]) -> list[RLE]:
    """One RLE per mask; values other than 0 are inside."""
    from faster_coco_eval.core import mask as coco

    return coco.encode(np.asfortranarray(masks.transpose(1, 2, 0) != 0).view(np.uint8)) if len(masks) else []


def decode(rles: Sequence[RLE]) -> Bool[np.ndarray, "n h w"]:
    """The pixels of valid RLEs of one size; (0, 0, 0) for none."""
    from faster_coco_eval.core import mask as coco

    if not rles:
        return np.zeros((0, 0, 0), dtype=bool)
    masks: NDArray = np.asarray(coco.decode(list(rles)), dtype=bool)
    return masks.transpose(2, 0, 1)


def area(rle: Mapping[str, object]) -> int:
    """The number of pixels of a valid RLE."""
    from faster_coco_eval.core import mask as coco

    return int(coco.area(rle))


def bounding_box(rle: Mapping[str, object]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the pixels of a valid RLE; 0 wide and high for an empty mask."""
    from faster_coco_eval.core import mask as coco

    x, y, across, down = (int(v) for v in np.asarray(coco.toBbox([rle])).reshape(-1, 4)[0])
    return x, y, across, down


def cropped(rle: RLE) -> tuple[int, int, UInt8[np.ndarray, "h w"]]:
    """Left and top of a valid RLE's bounding box, and the pixels inside it; no pixels for an empty mask.

    Only the columns that the mask covers are written, whatever the size of its image.
    """
    x, y, across, down = bounding_box(rle)
    height = rle["size"][0]
    if not across * down:
        return x, y, np.zeros((0, 0), dtype=np.uint8)
    changes = np.cumsum(decompress(rle["counts"])) - x * height  # to 1, to 0, to 1 ...
    pairs = changes[: len(changes) // 2 * 2].clip(0, across * height)
    # A run of no pixels changes twice at one place, which is no change.
    changed = np.bincount(pairs, minlength=across * height + 1)[:-1] & 1
    inside = np.bitwise_xor.accumulate(changed.astype(np.uint8)).reshape(across, height)
    return x, y, np.ascontiguousarray(inside[:, y : y + down].T)


def decompress(counts: bytes | str) -> Int[np.ndarray, " k"]:
    """The run lengths in COCO's code, which may come from outside. Raises ValueError if it is malformed.

    The result may be negative or not add up to the pixels of the mask: check this before compiled code reads the RLE.
    """
    raw = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    if not raw:
        return np.zeros(0, dtype=np.int64)
    characters = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    more = (characters & 0x20) != 0
    if (characters < 0).any() or (characters > 63).any():
        raise ValueError(f"counts are not COCO's compressed run lengths: {brief(counts)}")
    if more[-1]:
        raise ValueError(f"counts end inside a number: {brief(counts)}")
    ends = np.flatnonzero(~more)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts > 6).any():
        raise ValueError(f"counts hold a number of more than 35 bits: {brief(counts)}")
    places = np.arange(len(characters)) - np.repeat(starts, ends - starts + 1)
    runs = np.add.reduceat((characters & 0x1F) << (5 * places), starts)
    negative = (characters[ends] & 0x10) != 0
    runs -= np.where(negative, np.int64(1) << (5 * (ends - starts + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
