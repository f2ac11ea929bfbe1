"""The detector a verb asks for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twostage.detector import Detector


def load_detector(
    weights: str, *, device: str, precision: str, size: int | None, max_size: int | None, fields: dict[str, Any]
) -> "Detector":
    """The detector of a weights file, for images of another size where one is given. Imports torch."""
    from twostage.detector import Detector

    sizes = {name: value for name, value in (("size", size), ("max_size", max_size)) if value is not None}
    return Detector.load(weights, device=device, precision=precision, **{**fields, **sizes})
