"""The regions of VIA's files: shapes and classes.

Shapes are in pixels: rect, circle, ellipse and polygon are objects, points and lines are not. One of a region's
attributes is the class: the one called `label`, `class`, `name`, `category` or `type`, or the one that most have.
Without attributes all regions are of the class `object`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage.data.faults import unusable
from twostage.data.flat import NO_MASK, Mask
from twostage.data.segmentation import read_segmentation
from twostage.errors import brief

NO_OBJECTS = ("point", "polyline", "line")
_CLASS = ("label", "class", "name", "category", "type")
_ONLY = "object"  # the class of regions without attributes
_FARTHEST = 1e9  # pixels
_ROUND = 64  # points of the outline of a circle or an ellipse


class Region(NamedTuple):
    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]


def region_of(record: Any) -> Region:
    shape, attributes = (
        (record.get("shape_attributes"), record.get("region_attributes")) if isinstance(record, dict) else ({}, {})
    )
    return Region(shape if isinstance(shape, dict) else {}, attributes if isinstance(attributes, dict) else {})


def class_attribute(regions: Sequence[Region], root: Path) -> str | None:
    """The attribute that is the class; None where there are none. Raises FaultyDataError where several may be."""
    held = Counter(key for region in regions for key, value in region.attributes.items() if value not in ("", None, {}))
    if not held:
        return None
    named = {key.lower(): key for key in held}
    for name in _CLASS:
        if name in named:
            return named[name]
    (first, count), *others = held.most_common()
    if others and others[0][1] == count:
        message = f"which attribute of the regions is the class? There are {', '.join(sorted(held))}"
        raise unusable(root, "broken-record", message, "Call it `label` in VIA's attributes")
    return first


def class_of(region: Region, attribute: str | None) -> str:
    """The class of a region; "" where it has none. A checkbox has {"cat": true}."""
    if attribute is None:
        return _ONLY
    value = region.attributes.get(attribute)
    if isinstance(value, dict):
        chosen = [name for name, on in value.items() if on is True]
        return chosen[0].strip() if len(chosen) == 1 else ""
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def corners_and_mask(shape: Mapping[str, Any]) -> tuple[np.ndarray, Mask]:
    """The corners of a region's box or outline [n, 2], and its mask. Raises ValueError."""
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = _numbers(shape, ("x", "y", "width", "height"))
        return np.array([[x, y], [x + width, y + height]]), NO_MASK
    if kind in ("polygon", "polylineClosed"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys) or len(xs) < 3:
            raise ValueError(f"the polygon has the points {brief(xs)} and {brief(ys)}")
        values = dict(enumerate([*xs, *ys]))
        corners = np.array(_numbers(values, list(values))).reshape(2, -1).T
    elif kind in ("circle", "ellipse"):
        cx, cy = _numbers(shape, ("cx", "cy"))
        rx, ry = _numbers(shape, ("r", "r") if kind == "circle" else ("rx", "ry"))
        (theta,) = _numbers({"theta": shape.get("theta") or 0}, ("theta",))
        turn = np.linspace(0, 2 * np.pi, _ROUND, endpoint=False)
        along, across = rx * np.cos(turn), ry * np.sin(turn)
        xs = cx + along * math.cos(theta) - across * math.sin(theta)
        corners = np.stack([xs, cy + along * math.sin(theta) + across * math.cos(theta)], axis=1)
    else:
        raise ValueError(f"its shape is {brief(dict(shape))}, which is not one of VIA's")
    return corners, read_segmentation([corners.ravel().tolist()], (0, 0))


def _numbers(values: Mapping[Any, Any], keys: Sequence[Any]) -> list[float]:
    """The values of some keys. Raises ValueError where one is not a finite number."""
    numbers: list[Any] = [values.get(key) for key in keys]
    if not all(type(v) in (int, float) and abs(v) < _FARTHEST for v in numbers):  # NaN is not
        raise ValueError(f"{', '.join(map(str, keys[:8]))} are {brief(numbers)}, not numbers")
    return [float(v) for v in numbers]
