"""The names of the ways in which tools write a box (`data.notation` reads them)."""

from twostage.errors import UsageError, nearest

ORDERS = {
    "xywh": "x, y, width, height",
    "xyxy": "x1, y1, x2, y2",
    "cxcywh": "centre x, centre y, width, height",
    "yxyx": "y1, x1, y2, x2",
    "yxhw": "y, x, height, width",
    "xxyy": "x1, x2, y1, y2",
}
UNITS = {"pixels": 1.0, "fractions": 1.0, "percent": 100.0, "thousandths": 1000.0}


def order_and_unit(name: str) -> tuple[str, str]:
    """Those of a name such as `xyxy` (in pixels) or `cxcywh-fractions`. Raises UsageError."""
    order, _, unit = name.partition("-")
    if order not in ORDERS or (unit or "pixels") not in UNITS:
        known = [f"{o}-{u}" if u != "pixels" else o for o in ORDERS for u in UNITS]
        raise UsageError(f"boxes: there is no notation {name!r}. {nearest(name, known)}")
    return order, unit or "pixels"
