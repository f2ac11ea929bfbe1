"""The papers' values for the comparisons of `lineage`, and the same ratios of a run.

All on VOC 2007. "VGG16": Fast R-CNN, tables 1 and 4 (an Nvidia K40, proposals not counted); "ZF-5": SPPnet, table 10
(a GeForce Titan); Faster R-CNN, tables 3 and 5.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

MAP = {  # VOC07 test, percent
    "rcnn": (66.0, "VGG16"),
    "sppnet": (58.0, "ZF-5"),
    "sppnet_5_scales": (63.1, "VGG16"),
    "fast_rcnn": (66.9, "VGG16"),
    "faster_rcnn_alternating": (69.9, "VGG16"),
}


class Ratio(NamedTuple):
    """A comparison of two detectors: how many times the first's value is that of the second."""

    what: str
    papers: float
    where: str
    first: tuple[str, str]  # detector, and which of its seconds
    second: tuple[str, str]

    def ours(self, rows: Mapping[str, Mapping[str, Any]]) -> float | None:
        """The same of a run, from its rows by detector; None where it lacks one of the two."""
        (a, of_a), (b, of_b) = self.first, self.second
        if a not in rows or b not in rows:
            return None
        below = rows[b][of_b]
        return rows[a][of_a] / below if below > 0 else None


RATIOS = (
    Ratio("R-CNN / SPPnet, one scale", 102, "ZF-5", ("rcnn", "network"), ("sppnet", "network")),
    Ratio("R-CNN / SPPnet, five scales", 38, "ZF-5", ("rcnn", "network"), ("sppnet_5_scales", "network")),
    Ratio("R-CNN / Fast R-CNN", 146, "VGG16", ("rcnn", "network"), ("fast_rcnn", "network")),
    Ratio(
        "SPPnet, five scales / Fast R-CNN",
        7,
        "VGG16",
        ("sppnet_5_scales", "network"),
        ("fast_rcnn", "network"),
    ),
    Ratio(
        "Selective search / RPN",
        151,
        "VGG16",
        ("fast_rcnn", "proposals"),
        ("faster_rcnn_alternating", "proposals"),
    ),
)
