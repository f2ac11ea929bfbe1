"""How boxes are written: the order of their four numbers, and the unit.

Each format has one notation, and tools write others into it: corners where COCO has width and height, fractions of the
image where it has pixels. Each such box is valid by itself. All boxes of a split together show it: as written hardly
any fits its image, and in another notation all do.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from twostage.box_notations import ORDERS, UNITS, order_and_unit

_SLACK = 0.1  # of a side by which a box may reach over the border: annotators are not exact
_MISFITS = 3  # boxes at least that do not fit as written, before another notation is suspected
_SHARE = 0.1  # of all boxes, the same
_MANY = 10  # boxes at least, where numbers end at 100 or 1000
_SPREAD = 0.75  # of that range, which they reach along x and along y
_BEYOND = {"percent": 1.5, "thousandths": 1.02}  # times that range, which the sides of all images have at least


class Notation(NamedTuple):
    """The order of the four numbers, one of `ORDERS`, and their unit, one of `UNITS`."""

    order: str
    unit: str = "pixels"

    @classmethod
    def named(cls, name: str) -> "Notation":
        """That of a name such as `xyxy` or `cxcywh-fractions`. Raises UsageError."""
        return cls(*order_and_unit(name))

    def __str__(self) -> str:
        return self.order if self.unit == "pixels" else f"{self.order}-{self.unit}"

    @property
    def words(self) -> str:
        """For messages."""
        unit = {"fractions": "as fractions of the image", "percent": "in percent of the image"}
        return f"{ORDERS[self.order]} {unit.get(self.unit, f'in {self.unit} of the image')}".replace(
            "in pixels of the image", "in pixels"
        )

    def corners(self, values: Float64[np.ndarray, "b 4"], sizes: np.ndarray) -> Float64[np.ndarray, "b 4"]:
        """The boxes xyxy in pixels of images of these (height, width) [b, 2]."""
        a, b, c, d = values.T
        if self.order == "xywh":
            corners = a, b, a + c, b + d
        elif self.order == "cxcywh":
            corners = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        elif self.order == "yxyx":
            corners = b, a, d, c
        elif self.order == "yxhw":
            corners = b, a, b + d, a + c
        elif self.order == "xxyy":
            corners = a, c, b, d
        else:
            corners = a, b, c, d
        boxes = np.stack(corners, axis=1)
        if self.unit == "pixels":
            return boxes
        return boxes * (np.asarray(sizes, dtype=np.float64)[:, [1, 0, 1, 0]] / UNITS[self.unit])


CORNERS = Notation("xyxy")


class Suspicion(NamedTuple):
    """Another notation that explains the boxes, examples, and how many do not fit as written.

    No misfits: boxes that fit both ways, but end where parts of the image do.
    """

    notation: Notation
    misfits: int
    examples: np.ndarray


def suspicion(values: Float64[np.ndarray, "b 4"], sizes: np.ndarray, written: Notation) -> Suspicion | None:
    """The notation that boxes are probably in, if it is not `written`; `sizes` are their images' (height, width).

    Boxes that are not finite, and images of unknown size, are left out. Of two orders that differ in their axes alone,
    in parts of the image, either may be meant.
    """
    known = np.isfinite(values).all(axis=1) & (sizes > 0).all(axis=1)
    rows, values, sizes = np.flatnonzero(known), values[known], sizes[known]
    if not len(values):
        return None
    parts = _in_parts(values, sizes, written)
    if parts is not None:
        return Suspicion(parts, 0, rows[:3])
    fits = _fit(written.corners(values, sizes), sizes)
    misfits = len(fits) - int(fits.sum())
    if misfits < _MISFITS or misfits < _SHARE * len(values):
        return None
    for notation in _others(written):
        boxes = notation.corners(values, sizes)
        if _fit(boxes, sizes).all() and (notation.unit == written.unit or _fills(boxes, sizes, written)):
            return Suspicion(notation, misfits, rows[~fits][:3])
    return None


def _fills(boxes: np.ndarray, sizes: np.ndarray, written: Notation) -> bool:
    """Whether boxes in parts of the image spread over it: small numbers are parts of any image."""
    if written.unit != "pixels":
        return True
    return len(boxes) >= _MANY and bool(((boxes[:, 2:] / sizes[:, ::-1]).max(axis=0) >= _SPREAD).all())


def _fit(boxes: np.ndarray, sizes: np.ndarray) -> Bool[np.ndarray, " b"]:
    """Which boxes have an area, and lie within their image but for a part of a side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    slack = _SLACK * sides + 1
    inside = (boxes[:, :2] >= -slack).all(axis=1) & (boxes[:, 2:] <= sizes[:, ::-1] + slack).all(axis=1)
    return np.asarray((sides > 0).all(axis=1) & inside)


def _in_parts(values: np.ndarray, sizes: np.ndarray, written: Notation) -> Notation | None:
    """The notation of boxes in parts of the image that fit as pixels too, if those or fractions are meant.

    No number above 1 are fractions. Percent and thousandths end at 100 and 1000 along both axes, on images that reach
    farther.
    """
    if written.unit == "fractions" and np.median(values.max(axis=1)) <= 2:
        return None
    if written.unit == "pixels" and np.abs(values).max() <= 1.0 + 1e-6 and sizes.min() > 2:
        return Notation(_best_order(values, sizes, "fractions", written.order), "fractions")
    for unit in ("percent", "thousandths") if len(values) >= _MANY else ():
        top = UNITS[unit]
        if sizes.min() < _BEYOND[unit] * top:
            continue
        for order in _orders(written.order):
            boxes = Notation(order).corners(values, sizes)
            ends = boxes[:, 2:].max(axis=0)
            if (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= -1 and ends.max() <= 1.001 * top:
                if ends.min() >= _SPREAD * top:
                    return Notation(order, unit)
                break
    return None


def _orders(written: str) -> list[str]:
    """All orders, that of the format first."""
    return [written, *(order for order in ORDERS if order != written)]


def _best_order(values: np.ndarray, sizes: np.ndarray, unit: str, written: str) -> str:
    """The order in which most boxes fit in this unit, that of the format if it is one of them."""
    return max(
        _orders(written),
        key=lambda order: int(_fit(Notation(order, unit).corners(values, sizes), sizes).sum()),
    )


def _others(written: Notation) -> Iterator[Notation]:
    """Other orders of the same unit, then other units."""
    units = [
        written.unit,
        *(unit for unit in ("pixels", "fractions", "percent", "thousandths") if unit != written.unit),
    ]
    return (Notation(order, unit) for unit in units for order in _orders(written.order) if (order, unit) != written)
