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
_SPREAD = 0.85  # of the range of percent and thousandths that the largest number reaches at least
_MANY = 10  # boxes from which on numbers that end at 100 or 1000 say something
_LARGE = 2.5  # times the range that an image has pixels along a side, for the same


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
    """Another notation that explains the boxes; how many do not fit as written, and which are examples."""

    notation: Notation
    misfits: int
    examples: np.ndarray


def suspicion(values: Float64[np.ndarray, "b 4"], sizes: np.ndarray, written: Notation) -> Suspicion | None:
    """The notation that boxes are probably in, if it is not `written`; `sizes` are their images' (height, width).

    Boxes that are not finite, and images of unknown size, are left out.
    """
    known = np.isfinite(values).all(axis=1) & (sizes > 0).all(axis=1)
    rows, values, sizes = np.flatnonzero(known), values[known], sizes[known]
    if not len(values):
        return None
    fits = _fit(written.corners(values, sizes), sizes)
    misfits = len(fits) - int(fits.sum())
    by_unit = _other_unit(values, sizes, written)
    if by_unit is not None:
        order = _best_order(values, sizes, by_unit, written.order)
        return Suspicion(Notation(order, by_unit), len(values), rows[:3])
    if misfits < _MISFITS or misfits < _SHARE * len(values):
        return None
    for notation in _others(written):
        if _fit(notation.corners(values, sizes), sizes).all():
            return Suspicion(notation, misfits, rows[~fits][:3])
    return None


def _fit(boxes: np.ndarray, sizes: np.ndarray) -> Bool[np.ndarray, " b"]:
    """Which boxes have an area, and lie within their image but for a part of a side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    slack = _SLACK * sides + 1
    inside = (boxes[:, :2] >= -slack).all(axis=1) & (boxes[:, 2:] <= sizes[:, ::-1] + slack).all(axis=1)
    return np.asarray((sides > 0).all(axis=1) & inside)


def _other_unit(values: np.ndarray, sizes: np.ndarray, written: Notation) -> str | None:
    """Another unit that the largest numbers show."""
    high = float(np.abs(values).max())
    if written.unit == "pixels":
        if high <= 1.0 + 1e-6 and sizes.min() > 2:
            return "fractions"
        if len(values) >= _MANY:
            for unit in ("percent", "thousandths"):
                top = UNITS[unit]
                if _SPREAD * top <= high <= top and sizes.min() >= _LARGE * top:
                    return unit
        return None
    if written.unit == "fractions" and float(np.median(values.max(axis=1))) > 2:
        fitting = [unit for unit in ("pixels", "percent", "thousandths") if _largest_fits(values, sizes, unit)]
        return fitting[0] if fitting else None
    return None


def _largest_fits(values: np.ndarray, sizes: np.ndarray, unit: str) -> bool:
    top = sizes.max(axis=1) if unit == "pixels" else UNITS[unit]
    if unit == "pixels" and float(values.max()) <= 100 and len(values) >= _MANY and sizes.min() >= _LARGE * 100:
        return False  # percent
    return bool((values.max(axis=1) <= top * (1 + _SLACK)).all())


def _best_order(values: np.ndarray, sizes: np.ndarray, unit: str, written: str) -> str:
    """The order in which most boxes fit in this unit, that of the format if it is one of them."""
    orders = [written, *(order for order in ORDERS if order != written)]
    return max(orders, key=lambda order: int(_fit(Notation(order, unit).corners(values, sizes), sizes).sum()))


def _others(written: Notation) -> Iterator[Notation]:
    return (Notation(order, written.unit) for order in ORDERS if order != written.order)
