"""Turns annotations upright that were made on an image before its EXIF tag turned it.

`turn` is the EXIF orientation, 5 to 8 (those that exchange height and width); h, w are the size of the stored image.
"""

import numpy as np
from jaxtyping import Float

from twostage.data.flat import POLYGONS, RLE, Mask, pack_polygons, pixel_mask, to_rle, unpack_polygons
from twostage.ops import masks as rle_masks


def turn_points(x: np.ndarray, y: np.ndarray, turn: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the stored image on the upright one."""
    right, down = (height - y, x)  # orientation 6: a quarter turn clockwise
    if turn in (5, 8):
        right = y
    if turn in (7, 8):
        down = width - x
    return right, down


def turn_boxes(boxes: Float[np.ndarray, "n 4"], turn: int, height: int, width: int) -> Float[np.ndarray, "n 4"]:
    """Boxes xyxy of the stored image on the upright one; inverted boxes stay inverted."""
    x, y = turn_points(boxes[:, [0, 2]], boxes[:, [1, 3]], turn, height, width)
    # A mirrored axis exchanges its two ends.
    if turn in (6, 7):
        x = x[:, ::-1]
    if turn in (7, 8):
        y = y[:, ::-1]
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def turn_mask(mask: Mask, turn: int, height: int, width: int) -> Mask:
    """The mask of the stored image on the upright one."""
    if mask.kind == POLYGONS:
        rings = []
        for ring in unpack_polygons(mask.data):
            x, y = turn_points(ring[0::2], ring[1::2], turn, height, width)
            rings.append(np.stack([x, y], axis=1).ravel())
        return Mask(POLYGONS, pack_polygons(rings))
    if mask.kind != RLE:
        return mask
    pixels = rle_masks.decode([to_rle(mask, height, width)])[0].T
    if turn in (6, 7):
        pixels = pixels[:, ::-1]
    if turn in (7, 8):
        pixels = pixels[::-1]
    return pixel_mask(pixels)
