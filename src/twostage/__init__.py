"""Two-stage object detectors, from R-CNN to Hybrid Task Cascade, in one code base.

    from twostage import Detector
    detector = Detector.load("runs/blood/weights/best.safetensors")
    detections = detector.predict("photo.jpg")

Importing the package imports neither torch nor numpy; the names below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.detections import Detections
    from twostage.detector import Detector
    from twostage.training import train

__version__ = "0.1.0"
__all__ = ["Dataset", "Detections", "Detector", "__version__", "train"]

_HOMES = {
    "Dataset": "twostage.data.dataset",
    "Detections": "twostage.detections",
    "Detector": "twostage.detector",
    "train": "twostage.training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
