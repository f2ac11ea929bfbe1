"""Fields of annotation files that nothing here reads: attributes, keypoints, track ids, licences, VOC's pose.

They are kept as JSON text beside the objects, so that the verbs that write data sets write them again.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twostage.data.flat import FlatStrings
from twostage.errors import DataError

NONE = ""
# What COCO's records have themselves: such a name in another format gets a prefix.
_TAKEN = frozenset(
    {
        *("images", "annotations", "categories", "id", "file_name", "height", "width", "image_id", "category_id"),
        *("bbox", "area", "iscrowd", "difficult", "segmentation", "name"),
    }
)


@dataclass(frozen=True)
class Fields:
    """JSON objects of the file itself, of K classes, M images and B objects; "" where there are none."""

    common: str
    classes: tuple[str, ...]
    images: FlatStrings
    objects: FlatStrings

    @classmethod
    def of(cls, common: str, classes: Sequence[str], images: Sequence[str], objects: Sequence[str]) -> "Fields | None":
        """The fields; None if there are none."""
        if not (common or any(classes) or any(images) or any(objects)):
            return None
        return cls(common, tuple(classes), FlatStrings.of(images), FlatStrings.of(objects))

    def select(
        self,
        *,
        classes: Iterable[int] | None = None,
        images: Iterable[int] | None = None,
        objects: Iterable[int] | None = None,
    ) -> "Fields | None":
        """Those of some classes, images and objects, in this order; None for all of them."""
        return Fields.of(
            self.common,
            self.classes if classes is None else [self.classes[i] for i in classes],
            [self.images[i] for i in (range(len(self.images)) if images is None else images)],
            [self.objects[i] for i in (range(len(self.objects)) if objects is None else objects)],
        )


def renamed(record: Mapping[str, Any], form: str) -> dict[str, Any]:
    """The fields of a record of another format, those that COCO has itself as `form_name`."""
    return {f"{form}_{key}" if key in _TAKEN else key: value for key, value in record.items()}


def pack(record: Mapping[str, Any], known: Collection[str] = ()) -> str:
    """The fields of a record that are not `known`, as text; equal ones have equal text. Raises DataError."""
    if record.keys() <= set(known):
        return NONE
    try:
        return json.dumps({k: v for k, v in record.items() if k not in known}, sort_keys=True, default=str)
    except RecursionError as error:
        raise DataError(f"a field of {', '.join(record)} is nested too deeply. Remove it.") from error


def unpack(text: str) -> dict[str, Any]:
    """The fields of a text."""
    fields: dict[str, Any] = json.loads(text) if text else {}
    return fields


def together(commons: Sequence[str]) -> str:
    """Those of several files as one: lists, such as licences, one after the other, of other values the first."""
    if len(set(commons)) <= 1:
        return commons[0] if commons else NONE
    joined: dict[str, Any] = {}
    for fields in map(unpack, commons):
        for key, value in fields.items():
            if isinstance(value, list) and isinstance(joined.get(key), list):
                joined[key] = joined[key] + [one for one in value if one not in joined[key]]
            else:
                joined.setdefault(key, value)
    return pack(joined)


def join(parts: Sequence[Fields | None], counts: Sequence[tuple[int, int, int]]) -> Fields | None:
    """The fields of several splits of the same classes; `counts` are their numbers of classes, images and objects."""
    full = [
        part or Fields(NONE, (NONE,) * classes, FlatStrings.of([NONE] * images), FlatStrings.of([NONE] * objects))
        for part, (classes, images, objects) in zip(parts, counts, strict=True)
    ]
    return Fields.of(
        together([part.common for part in full if part.common]),
        [next((text for text in texts if text), NONE) for texts in zip(*(part.classes for part in full), strict=True)],
        [part.images[i] for part in full for i in range(len(part.images))],
        [part.objects[i] for part in full for i in range(len(part.objects))],
    )


def difference(given: Fields | None, other: Fields | None, names: Sequence[str]) -> str:
    """How others differ, in words; "" if they do not. `names` are those of the images."""
    if given is None and other is None:
        return ""
    if given is None or other is None:
        return "the other fields of images and objects are lost"
    if given.common != other.common or given.classes != other.classes:
        return "the other fields of the file, or of its classes, are changed"
    for index, name in enumerate(names):
        if given.images[index] != other.images[index]:
            return f"the other fields of the image {name} are changed"
    if not (
        np.array_equal(given.objects.offsets, other.objects.offsets)
        and np.array_equal(given.objects.data, other.objects.data)
    ):
        return "the other fields of objects are changed"
    return ""
