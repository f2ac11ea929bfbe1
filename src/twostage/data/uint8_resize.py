"""Bilinear resizing in whole grey levels, as other projects do before their networks see an image.

Pillow averages over all pixels that fall on a new one (detectron2); OpenCV reads four (mmdetection, py-faster-rcnn).
"""

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8
from PIL import Image

_ONE = 2048  # a weight of 1 in OpenCV's whole numbers


def by_pillow(image: UInt8[np.ndarray, "_ _ 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """As `Image.resize` with `BILINEAR`."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def by_opencv(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """As `cv2.resize` with `INTER_LINEAR`, to the last bit."""
    columns, share = _places(image.shape[1], width)
    share[(columns < 0) | (columns >= image.shape[1] - 1)] = 0  # outside one pixel counts alone; outer rows count twice
    rows, row_share = _places(image.shape[0], height)
    first, second = (w[:, None] for w in _weights(share))
    level = _take(image, columns, 1) * first + _take(image, columns + 1, 1) * second >> 4
    first, second = (w[:, None, None] for w in _weights(row_share))
    # Each part is cut short before they are added.
    total = (_take(level, rows, 0) * first >> 16) + (_take(level, rows + 1, 0) * second >> 16)
    return (total + 2 >> 2).astype(np.uint8)


def _places(old: int, new: int) -> "tuple[Int64[np.ndarray, ' n'], Float32[np.ndarray, ' n']]":
    """Between which old pixels each new one lies: the first of two, from -1 on, and the share of the second."""
    centre = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(centre).astype(np.int64)
    return first, centre - first.astype(np.float32)


def _weights(share: Float32[np.ndarray, " n"]) -> "tuple[Int32[np.ndarray, ' n'], Int32[np.ndarray, ' n']]":
    second = np.rint(share * np.float32(_ONE)).astype(np.int32)
    return _ONE - second, second


def _take(values: np.ndarray, places: Int64[np.ndarray, " n"], axis: int) -> Int32[np.ndarray, "..."]:
    """The rows or columns, the outermost one in the place of those outside."""
    return values.take(places, axis, mode="clip").astype(np.int32)
