"""A suggestion of the label audit: what may be wrong with a label, or where one may be missing."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from twostage.data.dataset import Dataset


class Kind(StrEnum):
    """What may be wrong; the order is that of the reports."""

    MISSING = "missing"  # an object without a label
    WRONG_CLASS = "wrong_class"
    LOOSE_BOX = "loose_box"
    NOT_FOUND = "not_found"  # a label where nothing is found
    DUPLICATE = "duplicate"  # two labels on one object


TITLES = {
    Kind.MISSING: "Missing labels",
    Kind.WRONG_CLASS: "Wrong classes",
    Kind.LOOSE_BOX: "Loose boxes",
    Kind.NOT_FOUND: "Labels where nothing is found",
    Kind.DUPLICATE: "Duplicate labels",
}


@dataclass(frozen=True)
class Suggestion:
    """One suggestion. `value` from 0 to 1 ranks those of a kind, the most likely fault first.

    `image` and `row` index the data set; `row` is the label in doubt, None for a missing one. `box` (xyxy pixels) and
    `label` (class id) are what to write in its place; None: remove the label. `other` is the row of the label that a
    duplicate repeats.
    """

    kind: Kind
    image: int
    row: int | None
    box: tuple[float, float, float, float] | None
    label: int | None
    value: float
    why: str
    other: int | None = None

    def to_dict(self, dataset: Dataset) -> dict[str, Any]:
        """Plain values: {"kind", "file", "image_id", "annotation_id", "label", "box", "suggested_label",
        "suggested_box", "value", "why"}; None where there is none."""
        row, other = self.row, self.other
        return {
            "kind": str(self.kind),
            "file": dataset.file_name(self.image),
            "image_id": int(dataset.image_ids[self.image]),
            "annotation_id": None if row is None else int(dataset.annotation_ids[row]),
            "label": None if row is None else dataset.names[int(dataset.labels[row])],
            "box": None if row is None else [round(side, 2) for side in dataset.boxes[row].tolist()],
            "suggested_label": None if self.label is None else dataset.names[self.label],
            "suggested_box": None if self.box is None else [round(side, 2) for side in self.box],
            "repeats": None if other is None else int(dataset.annotation_ids[other]),
            "value": round(self.value, 4),
            "why": self.why,
        }


def ranked(suggestions: list[Suggestion], kind: Kind) -> list[Suggestion]:
    """Those of a kind, the most likely fault first; of equal ones in the order of images."""
    return sorted((one for one in suggestions if one.kind == kind), key=lambda one: -one.value)
