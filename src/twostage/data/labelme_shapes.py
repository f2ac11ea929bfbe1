"""The shapes of labelme's files as objects: boxes, outlines and masks.

Rectangles, polygons, circles, masks and rotated rectangles are objects; polygons and masks of one label and `group_id`
are one object. Points and lines are not.
"""

import base64
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from twostage.data.builder import Builder
from twostage.data.fields import pack, renamed, unpack
from twostage.data.flat import NO_MASK, POLYGONS, Mask, pack_polygons, pixel_mask, to_rle
from twostage.data.segmentation import read_segmentation
from twostage.errors import brief
from twostage.ops.masks import decode

# Shapes that are no objects, and those whose corners are of a box that is not upright.
_NO_OBJECTS = ("point", "points", "line", "linestrip")
_ROTATED = ("rotation", "rotated_rectangle", "oriented_rectangle")
_TURNED = "rotated"
_OUTLINED = ("polygon", "mask")
_LARGEST = 1 << 28  # pixels of an image whose masks are drawn
_CIRCLE = 64  # points of its outline
_READ = ("label", "points", "shape_type", "mask", "difficult")
_FIX = "Correct it in labelme, or remove the shape"


class Shape(NamedTuple):
    """A shape: its number in the file, label, corners of its box xyxy, and its outline, or the mask of pixels."""

    number: int
    label: str
    box: tuple[float, float, float, float]
    ring: list[float] | None
    pixels: Mask | None
    difficult: bool
    fields: str


def is_object(shape: Any) -> bool:
    """Whether a shape has a label, and is of a type that has an area."""
    label = shape.get("label") if isinstance(shape, dict) else None
    return isinstance(label, str) and bool(label.strip()) and shape.get("shape_type") not in _NO_OBJECTS


def objects(
    builder: Builder, shapes: Sequence[Any], shown: str, stated: tuple[int, int], left_out: Counter[str]
) -> Iterator[list[Shape]]:
    """The objects of a file, each of one shape or of those of a group; the others are reported or counted."""
    groups: dict[tuple[str, str], list[Shape]] = defaultdict(list)
    for number, shape in enumerate(shapes):
        if isinstance(shape, dict) and shape.get("shape_type") in _NO_OBJECTS:
            left_out[shape["shape_type"]] += 1
            continue
        try:
            one = _shape(number, shape, stated)
        except ValueError as error:
            code = "box-not-numbers" if is_object(shape) else "broken-record"
            builder.report(code, shown, f"shapes[{number}]", str(error), _FIX)
            continue
        kind, group = shape.get("shape_type") or "polygon", shape.get("group_id")
        left_out.update([_TURNED] * (kind in _ROTATED))
        together = kind in _OUTLINED and group is not None
        groups[one.label, f"group {group!r}" if together else f"shape {number}"].append(one)
    yield from groups.values()


def _shape(number: int, shape: Any, stated: tuple[int, int]) -> Shape:
    """A shape with its box. Raises ValueError."""
    if not is_object(shape):
        raise ValueError(f"{brief(shape)} has no label")
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind not in ("rectangle", "circle", *_OUTLINED, *_ROTATED):
        raise ValueError(f"shape_type is {brief(kind)}, which is not one of labelme's")
    corners = _points(points)
    needed = {"rectangle": 2, "circle": 2, "mask": 2, "polygon": 3}.get(kind, 4)
    if corners is None or len(corners) < needed:
        raise ValueError(f"points are {brief(points)}, and a {kind} has {needed} or more of x, y")
    pixels = None
    if kind == "circle":
        turn = np.linspace(0, 2 * np.pi, _CIRCLE, endpoint=False)
        radius = math.dist(*corners[:2].tolist())
        corners = corners[0] + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    if kind == "mask":
        corners, pixels = _pixels(shape.get("mask"), corners, stated)
    (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    ring = corners.ravel().tolist() if kind in ("polygon", "circle") else None
    if ring is not None:
        read_segmentation([ring], stated)  # raises where it lies too far outside to be drawn
    others = {key: value for key, value in shape.items() if key not in _READ and value not in (None, "", {}, [])}
    fields = pack(renamed(others, "labelme"))
    return Shape(number, shape["label"].strip(), (x1, y1, x2, y2), ring, pixels, shape.get("difficult") is True, fields)


def _points(points: Any) -> np.ndarray | None:
    """Points as [n, 2]; None if they are not finite numbers."""
    try:
        corners = np.array(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return corners if corners.ndim == 2 and corners.shape[1] == 2 and np.isfinite(corners).all() else None


def _pixels(mask: Any, corners: np.ndarray, stated: tuple[int, int]) -> tuple[np.ndarray, Mask]:
    """The corners of a mask and its pixels on the image, given as a PNG of the part that begins at its first corner."""
    left, top = corners[0].round().clip(-1, 2**31).astype(int).tolist()
    try:
        with Image.open(io.BytesIO(base64.b64decode(mask, validate=True)), formats=("PNG",)) as image:
            part = np.asarray(image.convert("L")) > 0
    except Exception as error:  # Pillow's decoders raise what they like
        raise ValueError(f"its mask is not a PNG ({error})") from None
    (height, width), (rows, columns) = stated, part.shape
    if height * width > _LARGEST:
        raise ValueError(f"the file states an image of {width} x {height}")
    if left < 0 or top < 0 or top + rows > height or left + columns > width:
        raise ValueError(f"its mask of {columns} x {rows} at {left}, {top} is not within {width} x {height}")
    whole = np.zeros(stated, dtype=bool)
    whole[top : top + rows, left : left + columns] = part
    return np.array([[left, top], [left + columns, top + rows]], dtype=np.float64), pixel_mask(whole)


def add(
    builder: Builder, image: int, shapes: Sequence[Shape], label_of: Mapping[str, int], stated: tuple[int, int]
) -> None:
    """Adds an object of one or several shapes."""
    boxes = np.array([shape.box for shape in shapes])
    (x1, y1), (x2, y2) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    builder.add_object(
        image,
        (x1, y1, x2, y2),
        label_of[shapes[0].label],
        source=shapes[0].number,
        annotation_id=len(builder.objects) + 1,
        difficult=any(shape.difficult for shape in shapes),
        mask=_mask(shapes, stated),
        exact=True,
        fields=_fields([shape.fields for shape in shapes]),
    )


def _fields(texts: Sequence[str]) -> str:
    """Those of the first shape of a group, and of the others where they differ."""
    first, *others = texts
    different = [unpack(text) for text in others if text != first]
    return pack({**unpack(first), "other_shapes": different}) if different else first


def report_left_out(builder: Builder, left_out: Counter[str]) -> None:
    """Notes, with their numbers, on rotated shapes and on those that are no objects."""
    rotated = left_out.pop(_TURNED, 0)
    if rotated:
        message = f"{rotated} rotated rectangles are read as the upright boxes around them"
        builder.report("rotated-boxes", builder.split, "", message, "Nothing to do")
    if left_out:
        counted = ", ".join(f"{count} of type {kind}" for kind, count in left_out.most_common())
        message = f"shapes that are no boxes or areas are left out: {counted}"
        builder.report("left-out-shapes", builder.split, "", message, "Draw rectangles or polygons for objects")


def _mask(shapes: Sequence[Shape], stated: tuple[int, int]) -> Mask:
    """Polygons if there are no pixels, else the pixels of both."""
    rings = [shape.ring for shape in shapes if shape.ring is not None]
    masks = [shape.pixels for shape in shapes if shape.pixels is not None]
    if rings or not masks:
        masks.append(Mask(POLYGONS, pack_polygons(rings)) if rings else NO_MASK)
    if len(masks) == 1:
        return masks[0]
    together = np.zeros(stated, dtype=bool)
    for mask in masks:
        together |= decode([to_rle(mask, *stated)])[0]
    return pixel_mask(together)
