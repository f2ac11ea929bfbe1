"""What VOC and YOLO cannot hold: `twostage.json` beside the annotations keeps ids, crowds, areas, masks, other fields.

    {"format": 1, "classes": [{"id": 7, "name": "cat"}], "splits": {"train": {"Annotations/a.xml": {
        "sha256": ..., "id": 3, "objects": [{"id": 1, "iscrowd": 0, "area": 12.5, "segmentation": [[...]]}]}}}}

A class, an image and an object may have `fields` (`data.fields`), the files of a split `"fields": {"train": ...}`.
Objects are in the order of the annotation file. They are ignored for a file that was changed since, because the order
may have changed.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from twostage.data.builder import Builder
from twostage.data.coco_ids import free_ids, is_id
from twostage.data.dataset import Dataset
from twostage.data.faults import unusable
from twostage.data.fields import pack, unpack
from twostage.data.files import load_json
from twostage.data.flat import NO_MASK, NONE, Mask
from twostage.data.segmentation import SegmentationError, read_segmentation, write_segmentation

NAME = "twostage.json"
_FORMAT = 1


class Extra(NamedTuple):
    """The fields of an object that its format cannot hold; None and NaN where unknown."""

    id: int | None = None
    crowd: bool = False
    difficult: bool = False
    area: float = math.nan
    mask: Mask = NO_MASK
    box: tuple[float, float, float, float] | None = None
    no_area: bool = False  # of VOC, where a box that begins and ends at the same pixel is taken for a mistake
    fields: str = ""


class Extras:
    """The extras of one split. Without a file all methods return defaults."""

    def __init__(
        self,
        categories: Mapping[str, int],
        files: Mapping[str, Mapping[str, Any]],
        class_fields: Mapping[str, str] | None = None,
        common: str = "",
    ) -> None:
        self._categories = categories
        self._files = files
        self._class_fields = class_fields or {}
        self.common = common
        self._image_ids = free_ids({entry["id"] for entry in files.values()})
        self._object_ids = free_ids({one["id"] for entry in files.values() for one in entry["objects"]})

    def classes(self, names: Sequence[str]) -> dict[str, int]:
        """Category ids by name: the stored ones in their order, then new ones for the other classes found."""
        free = free_ids(self._categories.values())
        return {**self._categories, **{name: next(free) for name in names if name not in self._categories}}

    def class_fields(self, names: Iterable[str]) -> list[str]:
        """Other fields of each class."""
        return [self._class_fields.get(name, "") for name in names]

    def image_fields(self, shown: str, own: str = "") -> str:
        """Other fields of the image with this annotation file: the stored ones, else its `own`."""
        entry = self._files.get(shown)
        return own if entry is None else pack(entry.get("fields", {}))

    def image_id(self, shown: str) -> int:
        """The id of the image with this annotation file (path from the root); an unused one if none is stored."""
        entry = self._files.get(shown)
        return next(self._image_ids) if entry is None else entry["id"]

    def is_unchanged(self, path: Path, shown: str) -> bool:
        """Whether an annotation file is the one that was written together with the extras."""
        entry = self._files.get(shown)
        try:
            return entry is not None and hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        except OSError:  # it was removed since
            return False

    def objects(self, builder: Builder, path: Path, shown: str, stated: tuple[int, int]) -> Sequence[Extra]:
        """Those of the objects in an annotation file; [] if there are none or the file was changed."""
        entry = self._files.get(shown)
        if entry is None:
            return []
        if not self.is_unchanged(path, shown):
            message = f"was changed after {NAME} was written; ids, crowds, areas and masks there are not used"
            builder.report("stale-extras", shown, "", message, "Nothing to do, or convert the data set again")
            return []
        try:
            return [_extra(one, stated) for one in entry["objects"]]
        except SegmentationError as error:
            builder.report("broken-mask", NAME, shown, str(error), error.fix)
            return []

    def add_object(
        self,
        builder: Builder,
        kept: Sequence[Extra],
        image: int,
        number: int,
        box: tuple[float, float, float, float],
        label: int,
        mask: Mask,
        difficult: bool | None = None,
        exact: bool = False,
        fields: str = "",
    ) -> None:
        """Adds object `number` of an annotation file, counted from 1, with its extras, if they are among `kept`.

        Without `difficult`, that of the extras is used; `exact` as in `Builder.add_object`; the file's own other
        `fields` are used where there are no extras.
        """
        extra = kept[number - 1] if number <= len(kept) else Extra(fields=fields)
        if extra.box is not None:
            x1, y1, x2, y2 = extra.box
            exact = not (extra.no_area and builder.first)
            box = extra.box if exact else (x1 + builder.first, y1 + builder.first, x2, y2)
        builder.add_object(
            image,
            box,
            label,
            source=number,
            annotation_id=next(self._object_ids) if extra.id is None else extra.id,
            crowd=extra.crowd,
            difficult=extra.difficult if difficult is None else difficult,
            area=extra.area,
            mask=mask if extra.mask.kind == NONE else extra.mask,
            exact=exact,
            fields=extra.fields,
        )


def read_extras(root: Path, split: str) -> Extras:
    """The extras of a split; empty if the data set has none. Raises FaultyDataError for a broken file."""
    path = root / NAME
    if not path.is_file():
        return Extras({}, {})
    document = load_json(path)
    wrong = _wrong(document, split)
    if wrong:
        fix = "Remove it to go on without ids, crowds, areas and masks, or convert the data set again"
        raise unusable(path, "broken-json", wrong, fix)
    categories = {one["name"]: one["id"] for one in document["classes"]}
    class_fields = {one["name"]: pack(one.get("fields", {})) for one in document["classes"]}
    common = pack(_common(document, split))
    return Extras(categories, document["splits"].get(split, {}), class_fields, common)


def extras_document(datasets: Sequence[Dataset], places: Sequence[Sequence[Path]], root: Path) -> dict[str, Any]:
    """The content of the file for splits whose annotation files were written to `places`."""
    first = datasets[0]
    of_classes = first.fields.classes if first.fields else [""] * len(first.names)
    classes = zip(first.category_ids.tolist(), first.names, of_classes, strict=True)
    commons = {dataset.split: unpack(dataset.fields.common) for dataset in datasets if dataset.fields}
    return {
        "format": _FORMAT,
        "classes": [{"id": number, "name": name, **_fields(text)} for number, name, text in classes],
        **({"fields": commons} if any(commons.values()) else {}),
        "splits": {
            dataset.split: {
                path.relative_to(root).as_posix(): {
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "id": int(dataset.image_ids[index]),
                    **(_fields(dataset.fields.images[index]) if dataset.fields else {}),
                    "objects": list(_objects(dataset, index)),
                }
                for index, path in enumerate(paths)
            }
            for dataset, paths in zip(datasets, places, strict=True)
        },
    }


def _fields(text: str) -> dict[str, Any]:
    return {"fields": unpack(text)} if text else {}


def _objects(dataset: Dataset, index: int) -> Iterator[dict[str, Any]]:
    height, width = dataset.sizes[index].tolist()
    start, end = dataset.offsets[index : index + 2].tolist()
    for row in range(start, end):
        entry: dict[str, Any] = {
            "id": int(dataset.annotation_ids[row]),
            "iscrowd": int(dataset.crowd[row]),
            "difficult": int(dataset.difficult[row]),
            "area": float(dataset.areas[row]),
            "box": dataset.boxes[row].tolist(),
            **({"no_area": 1} if _without_area(dataset, row) else {}),
            **(_fields(dataset.fields.objects[row]) if dataset.fields else {}),
        }
        if dataset.masks is not None:
            entry["segmentation"] = write_segmentation(dataset.masks[row], height, width)
        yield entry


def _without_area(dataset: Dataset, row: int) -> bool:
    x1, y1, x2, y2 = dataset.boxes[row].tolist()
    return dataset.layout == "voc" and min(x2 - x1, y2 - y1) <= 1


def _extra(entry: Mapping[str, Any], stated: tuple[int, int]) -> Extra:
    x1, y1, x2, y2 = map(float, entry["box"])
    mask = read_segmentation(entry.get("segmentation"), stated)
    return Extra(
        entry["id"],
        bool(entry["iscrowd"]),
        bool(entry["difficult"]),
        entry["area"],
        mask,
        (x1, y1, x2, y2),
        bool(entry.get("no_area")),
        pack(entry.get("fields", {})),
    )


def _wrong(document: Mapping[str, Any], split: str) -> str:
    """Why a document is not a valid twostage.json, or ""."""
    if document.get("format") != _FORMAT:
        return f"format is {document.get('format')!r}, not {_FORMAT}"
    classes, splits = document.get("classes"), document.get("splits")
    if not isinstance(classes, list) or not isinstance(splits, dict):
        return "it has no list of classes, or no splits"
    if not all(isinstance(c, dict) and is_id(c.get("id")) and isinstance(c.get("name"), str) for c in classes):
        return "a class lacks a whole id or a name"
    if not (_has_fields(document) and all(map(_has_fields, classes)) and isinstance(_common(document, split), dict)):
        return "the fields of a split or a class are no object"
    if any(len({c[key] for c in classes}) < len(classes) for key in ("id", "name")):
        return "two classes share an id or a name"
    files = splits.get(split, {})
    if not isinstance(files, dict):
        return f"the split {split!r} is no object"
    for name, entry in files.items():
        objects = entry.get("objects") if isinstance(entry, dict) else None
        if not isinstance(objects, list) or not is_id(entry.get("id")) or not isinstance(entry.get("sha256"), str):
            return f"{name} lacks a sha256, a whole id or a list of objects"
        if not _has_fields(entry):
            return f"the fields of {name} are no object"
        for number, one in enumerate(objects):
            if not _is_object(one):
                return f"object {number} of {name} lacks id, iscrowd, difficult, area or box, or has broken fields"
    return ""


def _is_object(one: Any) -> bool:
    if not isinstance(one, dict) or not is_id(one.get("id")):
        return False
    box, flags = one.get("box"), (one.get("iscrowd"), one.get("difficult"))
    numbers: list[Any] = [one.get("area"), *box] if isinstance(box, list) and len(box) == 4 else [None]
    are_numbers = all(type(v) in (int, float) and abs(v) < 1e15 for v in numbers)
    return _has_fields(one) and all(flag in (0, 1) for flag in flags) and are_numbers


def _common(document: Mapping[str, Any], split: str) -> Any:
    return document.get("fields", {}).get(split, {})


def _has_fields(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("fields", {}), dict)
