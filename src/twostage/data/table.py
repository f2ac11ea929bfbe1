"""Objects while a data set is being read: rows as they come, columns to judge them by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

# image, source, label, annotation id, crowd, difficult, area, x1, y1, x2, y2
Row = tuple[int, int, int, int, int, int, float, float, float, float, float]


@dataclass
class Table:
    """The objects of a split as columns, in the order of `Row`; boxes are xyxy in float64."""

    image: Int64[np.ndarray, " b"]
    source: Int64[np.ndarray, " b"]
    label: Int64[np.ndarray, " b"]
    annotation_id: Int64[np.ndarray, " b"]
    crowd: Int64[np.ndarray, " b"]
    difficult: Int64[np.ndarray, " b"]
    area: Float64[np.ndarray, " b"]
    boxes: Float64[np.ndarray, "b 4"]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Table":
        """The columns of these rows."""
        columns = list(zip(*rows, strict=True)) or [()] * 11
        image, source, label, annotation_id, crowd, difficult = (np.array(c, dtype=np.int64) for c in columns[:6])
        area, boxes = np.array(columns[6], np.float64), np.array(columns[7:], np.float64).T.reshape(-1, 4)
        return cls(image, source, label, annotation_id, crowd, difficult, area, boxes)

    def take(self, rows: np.ndarray) -> "Table":
        """These rows, copied."""
        return Table(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))
