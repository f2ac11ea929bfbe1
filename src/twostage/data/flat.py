"""Strings and masks as flat arrays: forked workers share their memory; lists of objects would be copied."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from twostage.ops import masks as rle_masks
from twostage.ops import run_lengths

NONE, POLYGONS, RLE = 0, 1, 2


@dataclass(frozen=True)
class FlatStrings:
    """A tuple of strings in one array of bytes; those that are no text, as names of files need not be, survive too."""

    offsets: Int64[np.ndarray, " m1"]
    data: UInt8[np.ndarray, " _"]

    @classmethod
    def of(cls, strings: Sequence[str]) -> "FlatStrings":
        """The strings, concatenated."""
        return cls(*_flatten([s.encode("utf-8", "surrogatepass") for s in strings]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes().decode("utf-8", "surrogatepass")


class Mask(NamedTuple):
    """A mask as it was read: `kind` POLYGONS with bytes of `pack_polygons`, or RLE with COCO's compressed counts.

    `size` is the (height, width) of an RLE; (0, 0) for polygons.
    """

    kind: int
    data: bytes
    size: tuple[int, int] = (0, 0)


NO_MASK = Mask(NONE, b"")


@dataclass(frozen=True)
class FlatMasks:
    """Masks of all objects in one array of bytes; polygons are rasterised on demand."""

    kinds: UInt8[np.ndarray, " b"]
    offsets: Int64[np.ndarray, " b1"]
    data: UInt8[np.ndarray, " _"]

    @classmethod
    def of(cls, masks: Sequence[Mask]) -> "FlatMasks":
        """The masks, concatenated."""
        kinds = np.fromiter((m.kind for m in masks), dtype=np.uint8, count=len(masks))
        return cls(kinds, *_flatten([m.data for m in masks]))

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Mask:
        return Mask(int(self.kinds[index]), self.data[self.offsets[index] : self.offsets[index + 1]].tobytes())


def pack_polygons(rings: Sequence[Sequence[int | float] | np.ndarray]) -> bytes:
    """Rings of x, y, x, y ... as bytes: their number, the length of each, the coordinates (all 8 bytes wide)."""
    lengths = np.array([len(rings), *map(len, rings)], dtype=np.int64)
    return lengths.tobytes() + b"".join(np.asarray(ring, dtype=np.float64).tobytes() for ring in rings)


def unpack_polygons(data: bytes) -> list[np.ndarray]:
    """The rings that `pack_polygons` packed, each a float64 [2n]."""
    count = int(np.frombuffer(data, np.int64, 1)[0])
    lengths = np.frombuffer(data, np.int64, count, offset=8)
    coordinates = np.frombuffer(data, np.float64, offset=8 * (count + 1))
    return np.split(coordinates, np.cumsum(lengths)[:-1])


def box_mask(box: Sequence[float] | np.ndarray) -> Mask:
    """A box xyxy as a polygon: the mask of an object that has none, for drawing and for ignoring detections there."""
    x1, y1, x2, y2 = box
    return Mask(POLYGONS, pack_polygons([[x1, y1, x2, y1, x2, y2, x1, y2]]))


def pixel_mask(pixels: np.ndarray) -> Mask:
    """The mask [h, w] of the pixels that are not 0."""
    return Mask(RLE, rle_masks.encode(pixels[None])[0]["counts"], pixels.shape)


def to_rle(mask: Mask, height: int, width: int) -> run_lengths.RLE:
    """A mask on an image of this size as a COCO RLE: {"size": [h, w], "counts": bytes}."""
    if mask.kind == RLE:
        return {"size": [height, width], "counts": mask.data}
    from faster_coco_eval.core import mask as coco

    rings = [ring.tolist() for ring in unpack_polygons(mask.data)]
    return {"size": [height, width], "counts": coco.merge(coco.frPyObjects(rings, height, width))["counts"]}


def _flatten(pieces: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return offsets, np.frombuffer(b"".join(pieces), dtype=np.uint8)
