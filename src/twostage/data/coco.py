"""COCO's JSON: images, annotations with boxes and masks, categories.

Field names and meanings: https://cocodataset.org/#format-data; VOC's `difficult` is allowed beside `iscrowd`. Class ids
follow the category ids in ascending order.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twostage.data import coco_ids, coco_writer
from twostage.data.builder import Builder
from twostage.data.coco_categories import class_fields, read_categories
from twostage.data.coco_ids import is_id, known_id
from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, unusable
from twostage.data.fields import pack
from twostage.data.files import display_path, load_json, subfolders
from twostage.data.flat import NONE
from twostage.data.found_images import FoundImages, find_images
from twostage.data.layout import Format, Layout, Options, Writer
from twostage.data.names import nested_names
from twostage.data.notation import Notation
from twostage.data.rotated import around
from twostage.data.segmentation import SegmentationError, read_segmentation, short_polygons
from twostage.errors import DataError, brief

# What is read; other fields are kept as they are.
_DOCUMENT = ("images", "annotations", "categories")
_IMAGE = ("id", "file_name", "height", "width")
_ANNOTATION = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult", "segmentation")


def detect(path: Path) -> Layout | None:
    """The layout of a JSON file, of a folder with JSON files, or of one folder with a JSON file per split."""
    if path.is_file():
        if path.suffix.lower() != ".json":
            return None
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return Layout(FORMAT, root, {_split_name(path): path})
    for folder in (path / "annotations", path):
        files = _annotation_files(folder)
        if files:
            return Layout(FORMAT, path, {_split_name(p): p for p in files})
    sources: dict[str, Path] = {}
    for folder in subfolders(path):
        files = _annotation_files(folder)
        if len(files) > 1:
            names = ", ".join(p.name for p in files)
            raise DataError(
                f"{folder}: holds several annotation files: {names}. Name one of them instead of the folder."
            )
        if files:
            sources[folder.name] = files[0]
    return Layout(FORMAT, path, sources) if sources else None


def _annotation_files(folder: Path) -> list[Path]:
    """The COCO files in a folder: `instances*.json` if there are any, without captions and keypoints, else all."""
    if not folder.is_dir():
        return []
    plain = (p for p in sorted(folder.glob("*.json")) if p.is_file() and not p.name.startswith("."))
    files = [p for p in plain if _looks_like_coco(p)]
    return [p for p in files if p.stem.startswith("instances")] or files


def _looks_like_coco(path: Path) -> bool:
    """By its name, or by a key near its beginning or end: these files can be large."""
    if path.name.startswith("instances") or path.name.endswith((".coco.json", "_annotations.json")):
        return True
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        text = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        text += file.read()
    return re.search(rb'"(images|annotations|categories)"\s*:', text) is not None


def _split_name(path: Path) -> str:
    return path.stem.removeprefix("instances_") or path.stem


def _image_folders(json_file: Path, root: Path, split: str) -> list[Path]:
    """Where the images of a COCO file may be, the likeliest first."""
    beside = json_file.parent
    inside = [root / split, root / split / "images", root / "images" / split, root / "images", root]
    return list(dict.fromkeys([beside, beside / "images", beside / "data", *inside]))


def _read(layout: Layout, options: Options, split: str) -> Dataset:
    """The data set of one JSON file, its images in whichever folder has them."""
    json_file = layout.sources[split]
    folders = [options.images] if options.images else _image_folders(json_file, layout.root, split)
    document = load_json(json_file)
    shown = display_path(json_file, layout.root)
    faults: list[Fault] = []
    document = coco_ids.as_numbers(document, shown, faults)
    images, annotations = (_list(document, key, json_file) for key in ("images", "annotations"))
    used = Counter(known_id(record, "category_id") for record in annotations)
    categories, label_of = read_categories(document, shown, faults, used)
    names = [
        str(record["file_name"]) for record in images if isinstance(record, dict) and _is_name(record.get("file_name"))
    ]
    found = find_images(names, folders)
    if names and options.require_images and not found.any:
        message = f"none of its {len(names)} images exists, {names[0]!r} the first"
        fix = f"Looked in {', '.join(map(str, folders))}: give the folder of the images with --images"
        if options.images:
            fix = f"Looked for it, and for the end of its path, in {options.images}: give another folder with --images"
        raise unusable(json_file, "missing-image", message, fix)

    def place(image: int, source: int) -> tuple[str, str]:
        return shown, f"annotations[{source}] (id {annotations[source].get('id')}, image {builder.file_names[image]})"

    builder = Builder(
        root=layout.root,
        layout="coco",
        split=split,
        names=tuple(name for _, name in categories),
        category_ids=[category for category, _ in categories],
        place=place,
        options=options,
        notation=Notation("xywh"),
        faults=faults,
        common=pack(document, _DOCUMENT),
        class_fields=class_fields(document, categories),
    )
    index_of = _add_images(builder, images, found, shown)
    _add_annotations(builder, annotations, index_of, label_of, shown)
    _report_rotated(builder, annotations, shown)
    return builder.build()


def _list(document: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    value = document.get(key, [] if key == "annotations" else None)
    if not isinstance(value, list):
        keys = ", ".join(map(repr, list(document)[:8])) or "nothing"
        what = f"{key!r} is {brief(value)}, not a list" if key in document else f"has no list {key!r}; it has {keys}"
        raise unusable(path, "broken-json", what, "Name a COCO data set, not its results")
    return value


def _add_images(builder: Builder, images: Sequence[Any], found: FoundImages, shown: str) -> dict[int, int]:
    """Adds the images; returns the index of each image id."""
    index_of: dict[int, int] = {}
    seen: dict[str, tuple[str, int]] = {}
    if found.moved:
        builder.report("image-paths", shown, "", found.moved, "Nothing to do")
    for position, record in enumerate(images):
        where = f"images[{position}]"
        if not isinstance(record, dict) or not is_id(record.get("id")) or not _is_name(record.get("file_name")):
            message = f"{brief(record)} lacks a whole id and a file_name"
            builder.report("broken-record", shown, where, message, 'Write {"id": 1, "file_name": "a.jpg", ...}')
            continue
        number, written = record["id"], record["file_name"]
        name, path = found.place(written)
        if number in index_of:
            # Which of the two images its objects belong to cannot be known.
            message = f"the id {number} is taken by {builder.file_names[index_of[number]]!r}"
            fix = "Give every image its own"
            builder.report("duplicate-image-id", shown, where, message, fix, image=index_of[number])
            continue
        if name in seen and seen[name][0] == written:
            index_of[number] = seen[name][1]
            builder.report("duplicate-file", shown, where, f"{written!r} is listed twice", "Merge the two images")
            continue
        stated = _side(record.get("height")), _side(record.get("width"))
        index_of[number] = builder.add_image(name, path, number, stated, pack(record, _IMAGE))
        if name in seen:
            message = f"{written!r} and {seen[name][0]!r} end alike, and neither exists as written"
            fix = "Put the images into folders as in their paths"
            builder.report("missing-image", shown, where, message, fix, image=index_of[number])
        seen.setdefault(name, (written, index_of[number]))
    return index_of


def _add_annotations(
    builder: Builder, annotations: Sequence[Any], index_of: dict[int, int], label_of: dict[int, int], shown: str
) -> None:
    used: set[int] = set()
    filled = {"iscrowd": 0, "area": 0, "id": 0}
    taken = {a["id"] for a in annotations if isinstance(a, dict) and is_id(a.get("id"))}
    free = coco_ids.free_ids(taken)
    for position, record in enumerate(annotations):
        where = f"annotations[{position}]"
        try:
            fields = _annotation(record, index_of, label_of, builder.stated)
        except (_RecordError, SegmentationError) as error:
            builder.report(error.code, shown, where, f"{error} in {brief(record)}", error.fix)
            continue
        short = short_polygons(record.get("segmentation"))
        if short:
            message = f"polygons of fewer than three points left out: {brief(short)}"
            builder.report("short-polygon", shown, where, message, "Draw them again, or remove them")
        number = record.get("id")
        filled["area"] += math.isnan(fields["area"])
        filled["iscrowd"] += "iscrowd" not in record
        filled["id"] += number is None
        if number in used:
            fresh = next(free)
            message = f"the id {number} is taken; {fresh} is used"
            builder.report("duplicate-annotation-id", shown, where, message, "Give every annotation its own id")
            number = fresh
        if number is None:
            number = next(free)
        used.add(number)
        builder.add_object(**fields, source=position, annotation_id=number)
    for key, lacking in filled.items():
        if lacking:
            value = {"iscrowd": "0", "area": "the area of mask or box", "id": "a new number"}[key]
            message = f"{lacking} of {len(annotations)} annotations have no {key!r}; {value} is used"
            builder.report("filled-default", shown, "", message, "Nothing to do")


class _RecordError(Exception):
    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code, self.fix = code, fix


def _annotation(
    record: Any, index_of: Mapping[int, int], label_of: Mapping[int, int], stated: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The arguments of `Builder.add_object` for an annotation. Raises _RecordError and SegmentationError."""
    if not isinstance(record, dict):
        raise _RecordError("broken-record", "not an object", "Write an object for each annotation")
    if not is_id(record.get("id", 0)):
        raise _RecordError("broken-record", "the id is not a whole number", "Number the annotations")
    number, category = record.get("image_id"), record.get("category_id")
    if not is_id(number) or number not in index_of:
        raise _RecordError("unknown-image", f"no image has the id {number!r}", "Add the image, or remove the object")
    if not is_id(category) or category not in label_of:
        message = f"no category has the id {category!r}"
        fix = "Add the category, or correct category_id"
        if "segments_info" in record:
            fix = "This is a panoptic file: give that of the instances"
        elif category is None:
            fix = "VIA writes null for classes that are words: give its own JSON instead, or add the ids"
        raise _RecordError("unknown-class", message, fix)
    box = record.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)):
        message = f"bbox is {brief(box)}, not four numbers"
        raise _RecordError("box-not-numbers", message, "Write [x, y, width, height] in pixels")
    x, y, width, height = map(float, box)
    area = record.get("area")
    for key in ("iscrowd", "difficult"):  # the second is VOC's, kept by `data convert`
        if record.get(key, 0) not in (0, 1):
            raise _RecordError("broken-record", f"{key} is {brief(record[key])}", "Write 0 or 1")
    if area is not None and not _is_number(area):
        raise _RecordError("broken-record", f"area is {brief(area)}", "Write a number, or leave it out")
    image = index_of[number]
    mask = read_segmentation(record.get("segmentation"), stated[image])
    degrees = _rotation(record)
    if degrees and mask.kind == NONE:
        x1, y1, x2, y2 = around((x, y, x + width, y + height), degrees)
        x, y, width, height = x1, y1, x2 - x1, y2 - y1
        attributes = {**record["attributes"], "rotated_by": degrees, "rotated_box": box}
        del attributes["rotation"]  # else it would be turned again once written
        record = {**record, "attributes": attributes}
    return {
        "image": image,
        "box": (x, y, width, height),
        "label": label_of[category],
        "crowd": bool(record.get("iscrowd", 0)),
        "difficult": bool(record.get("difficult", 0)),
        "area": math.nan if area is None else float(area),
        "mask": mask,
        "fields": pack(record, _ANNOTATION),
    }


def _rotation(record: Any) -> float:
    """The angle of a box of CVAT, which writes it beside the box as it was before it was turned; 0 for others."""
    attributes = record.get("attributes") if isinstance(record, dict) else None
    if not isinstance(attributes, dict) or "occluded" not in attributes:
        return 0.0
    degrees: Any = attributes.get("rotation")
    return float(degrees) if _is_number(degrees) else 0.0


def _report_rotated(builder: Builder, annotations: Sequence[Any], shown: str) -> None:
    turned = sum(bool(_rotation(one)) for one in annotations if not (isinstance(one, dict) and one.get("segmentation")))
    if turned:
        message = f"{turned} of {len(annotations)} boxes are rotated (CVAT); the upright boxes around them are read"
        builder.report("rotated-boxes", shown, "", message, "Nothing to do")


def _side(value: Any) -> int:
    return value if is_id(value) and value < 2**31 else 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**53)


FORMAT = Format(
    name="coco",
    description="a JSON file; annotations/instances_<split>.json with <split>/; or one folder per split with a JSON",
    detect=detect,
    open=lambda layout, options: partial(_read, layout, options),
    writer=Writer(coco_writer.write, image_names=nested_names, image_folder="{split}", complete=True),
)
