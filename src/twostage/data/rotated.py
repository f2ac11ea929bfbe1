"""Boxes that a tool writes upright beside an angle: CVAT's rotated rectangles (cvat#4745)."""

import math

Box = tuple[float, float, float, float]


def around(box: Box, degrees: float) -> Box:
    """The upright box around a box xyxy that is turned about its centre."""
    x1, y1, x2, y2 = box
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half_width = (cos * (x2 - x1) + sin * (y2 - y1)) / 2
    half_height = (sin * (x2 - x1) + cos * (y2 - y1)) / 2
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height
