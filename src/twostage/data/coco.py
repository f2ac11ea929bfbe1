"""COCO's JSON: images, annotations with boxes and masks, categories.

Field names and meanings: https://cocodataset.org/#format-data; VOC's `difficult` may stand beside `iscrowd`. Class ids
follow the category ids in ascending order.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, FaultyDataError, OnError, fault
from twostage.data.files import exists, require_regular
from twostage.data.flat import Mask
from twostage.data.images import Header
from twostage.data.segmentation import SegmentationError, read_segmentation, short_polygons
from twostage.errors import brief

LARGEST_ID = 2**63 - 1


def read_coco(
    json_file: Path,
    *,
    root: Path,
    split: str,
    folders: Sequence[Path],
    on_error: OnError,
    mend: bool,
    require_images: bool,
    look: Callable[[str], Header],
) -> Dataset:
    """The data set of one COCO file, its pictures in whichever of `folders` has them; `look` reads their headers.

    Raises FaultyDataError.
    """
    document = load_json(json_file)
    shown = json_file.name
    faults: list[Fault] = []
    categories = _categories(document, shown, faults)
    label_of = {category: label for label, (category, _) in enumerate(categories)}
    images, annotations = (_list(document, key, json_file) for key in ("images", "annotations"))
    folder = _folder(images, folders, json_file if require_images else None)
    places: list[str] = []  # file name of each image

    def place(image: int, source: int) -> tuple[str, str]:
        return shown, f"annotations[{source}] (id {annotations[source].get('id')}, image {places[image]})"

    builder = Builder(
        root=root,
        layout="coco",
        split=split,
        names=tuple(name for _, name in categories),
        category_ids=[category for category, _ in categories],
        place=place,
        require_images=require_images,
        look=look,
        mend=mend,
        faults=faults,
    )
    index_of = _add_images(builder, images, folder, shown)
    places.extend(builder.file_names)
    _add_annotations(builder, annotations, index_of, label_of, shown)
    return builder.build(on_error)


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises FaultyDataError for whatever keeps it from being one, NaN included."""

    def refuse(constant: str) -> NoReturn:
        raise _NoNumberError(f"holds {constant}, which is no JSON number")

    try:
        require_regular(path)
        document = json.loads(path.read_bytes(), parse_constant=refuse)
    except FileNotFoundError:
        _broken(path, "missing-file", "does not exist", "Check the path")
    except OSError as error:
        _broken(
            path,
            "unreadable-file",
            f"cannot be read ({error.strerror or error})",
            "Check that it is a file you may read",
        )
    except RecursionError:
        _broken(path, "broken-json", "is nested too deeply", "Write plain COCO lists")
    except _NoNumberError as error:
        _broken(path, "broken-json", str(error), "Find it in the file, and write a number there or drop its entry")
    except ValueError as error:  # of JSON and of text encodings alike
        _broken(path, "broken-json", f"does not parse: {error}", "Write the file again; it may have been cut short")
    if not isinstance(document, dict):
        _broken(path, "broken-json", f"holds a {type(document).__name__}, not an object", "Name a COCO data set")
    return document


def _broken(path: Path, code: str, message: str, fix: str) -> NoReturn:
    raise FaultyDataError(f"{path}: cannot be used.", [fault(code, path, "", message, fix)])


def _list(document: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    value = document.get(key, [] if key == "annotations" else None)
    if not isinstance(value, list):
        found = ", ".join(map(repr, list(document)[:8])) or "nothing"
        what = f"{key!r} is {brief(value)}, no list" if key in document else f"has no list {key!r}; it has {found}"
        _broken(path, "broken-json", what, "Name a COCO data set, not its results")
    return value


def _categories(document: Mapping[str, Any], shown: str, faults: list[Fault]) -> list[tuple[int, str]]:
    """Ids and names in ascending order of id."""
    found: dict[int, str] = {}
    fix = 'Write {"id": 1, "name": "cat"} with ids and names that differ'
    records = document.get("categories")
    if not isinstance(records, list) or not records:
        faults.append(fault("broken-record", shown, "categories", "no list of categories, or an empty one", fix))
        records = []
    for position, record in enumerate(records):
        where = f"categories[{position}]"
        if not (isinstance(record, dict) and _is_id(record.get("id")) and isinstance(record.get("name"), str)):
            faults.append(fault("broken-record", shown, where, f"{brief(record)} lacks a whole id and a name", fix))
        elif record["id"] in found:
            faults.append(fault("duplicate-class", shown, where, f"the id {record['id']} is taken", fix))
        elif record["name"] in found.values():
            faults.append(fault("duplicate-class", shown, where, f"the name {record['name']!r} is taken", fix))
        else:
            found[record["id"]] = record["name"]
    return sorted(found.items())


def _folder(images: Sequence[Any], folders: Sequence[Path], required_by: Path | None) -> Path:
    """The folder that has the most of the first pictures. Raises FaultyDataError when none has any, if that matters."""
    names = [r["file_name"] for r in images if isinstance(r, dict) and _is_name(r.get("file_name"))]
    best = max(folders, key=lambda folder: sum(exists(folder / name) for name in names[:20]))
    if names and required_by and not any(exists(folder / name) for name in names for folder in folders):
        looked = ", ".join(map(str, folders))
        message = f"none of its {len(names)} pictures is there, {names[0]!r} the first; looked in {looked}"
        _broken(required_by, "missing-image", message, "Name the folder of the pictures with --images")
    return best


def _add_images(builder: Builder, images: Sequence[Any], folder: Path, shown: str) -> dict[int, int]:
    """Adds the images; the index of each id."""
    index_of: dict[int, int] = {}
    seen: set[str] = set()
    for position, record in enumerate(images):
        where = f"images[{position}]"
        if not isinstance(record, dict) or not _is_id(record.get("id")) or not _is_name(record.get("file_name")):
            message = f"{brief(record)} lacks a whole id and a file_name"
            builder.report("broken-record", shown, where, message, 'Write {"id": 1, "file_name": "a.jpg", ...}')
            continue
        number, name = record["id"], record["file_name"]
        if number in index_of:
            builder.report("duplicate-image-id", shown, where, f"the id {number} is taken", "Give every image its own")
        elif name in seen:
            builder.report("duplicate-file", shown, where, f"{name!r} is listed twice", "Merge the two images")
        else:
            seen.add(name)
            stated = _side(record.get("height")), _side(record.get("width"))
            index_of[number] = builder.add_image(name, folder / name, number, stated)
    return index_of


def _add_annotations(
    builder: Builder, annotations: Sequence[Any], index_of: dict[int, int], label_of: dict[int, int], shown: str
) -> None:
    used: set[int] = set()
    filled = {"iscrowd": 0, "area": 0, "id": 0}
    fresh = 1 + max((a["id"] for a in annotations if isinstance(a, dict) and _is_id(a.get("id"))), default=0)
    for position, record in enumerate(annotations):
        try:
            image, label, box, area, crowd, difficult, mask = _annotation(record, index_of, label_of, builder.stated)
        except _RecordError as error:
            where = f"annotations[{position}]"
            builder.report(error.code, shown, where, f"{error} in {brief(record)}", error.fix)
            continue
        short = short_polygons(record.get("segmentation"))
        if short:
            message = f"polygons of fewer than three points left out: {brief(short)}"
            builder.report(
                "short-polygon", shown, f"annotations[{position}]", message, "Draw them again, or remove them"
            )
        filled["area"] += math.isnan(area)
        filled["iscrowd"] += "iscrowd" not in record
        number = record.get("id")
        if number is None or number in used:
            filled["id"] += number is None
            if number is not None:
                message = f"the id {number} is taken; {fresh} is used"
                builder.report(
                    "duplicate-annotation-id", shown, f"annotations[{position}]", message, "Number annotations anew"
                )
            number, fresh = fresh, fresh + 1
        used.add(number)
        builder.add_object(
            image,
            box,
            label,
            source=position,
            annotation_id=number,
            crowd=crowd,
            difficult=difficult,
            area=area,
            mask=mask,
        )
    for key, count in filled.items():
        if count:
            value = {"iscrowd": "0", "area": "the area of mask or box", "id": "a new number"}[key]
            message = f"{count} of {len(annotations)} annotations have no {key!r}; {value} is used"
            builder.report("filled-default", shown, "", message, "Nothing to do")


class _NoNumberError(ValueError):
    """NaN or an infinity, which Python writes and JSON does not know."""


class _RecordError(Exception):
    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code, self.fix = code, fix


def _annotation(
    record: Any, index_of: Mapping[int, int], label_of: Mapping[int, int], stated: Sequence[tuple[int, int]]
) -> tuple[int, int, tuple[float, float, float, float], float, bool, bool, Mask]:
    """Image, label, box xyxy, area, crowd, difficult and mask of an annotation. Raises _RecordError."""
    if not isinstance(record, dict):
        raise _RecordError("broken-record", "not an object", "Write an object for each annotation")
    if not _is_id(record.get("id", 0)):
        raise _RecordError("broken-record", "the id is not a whole number", "Number the annotations")
    number, category = record.get("image_id"), record.get("category_id")
    if not _is_id(number) or number not in index_of:
        raise _RecordError("unknown-image", f"no image has the id {number!r}", "Add the image, or remove the object")
    if not _is_id(category) or category not in label_of:
        message = f"no category has the id {category!r}"
        raise _RecordError("unknown-class", message, "Add the category, or correct category_id")
    box = record.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)):
        message = f"bbox is {brief(box)}, not four numbers"
        raise _RecordError("box-not-numbers", message, "Write [x, y, width, height] in pixels")
    x, y, width, height = map(float, box)
    area = record.get("area")
    for key in ("iscrowd", "difficult"):  # the second is VOC's, kept by `data convert`
        if record.get(key, 0) not in (0, 1):
            raise _RecordError("broken-record", f"{key} is {brief(record[key])}", "Write 0 or 1")
    crowd, difficult = bool(record.get("iscrowd", 0)), bool(record.get("difficult", 0))
    if area is not None and not _is_number(area):
        raise _RecordError("broken-record", f"area is {brief(area)}", "Write a number, or leave it out")
    image = index_of[number]
    try:
        mask = read_segmentation(record.get("segmentation"), stated[image])
    except SegmentationError as error:
        raise _RecordError("broken-mask", str(error), error.fix) from None
    size = math.nan if area is None else float(area)
    return image, label_of[category], (x, y, x + width, y + height), size, crowd, difficult, mask


def _side(value: Any) -> int:
    return value if _is_id(value) and value < 2**31 else 0


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= LARGEST_ID


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**53)
