"""COCO's JSON: images, annotations with boxes and masks, categories.

Field names and meanings: https://cocodataset.org/#format-data; VOC's `difficult` is allowed beside `iscrowd`. Class ids
follow the category ids in ascending order.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from twostage.atomic import write_text
from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, fault, unusable
from twostage.data.files import exists, load_json, subfolders
from twostage.data.flat import NONE
from twostage.data.layout import Format, Layout, Names, Options
from twostage.data.names import nested_names
from twostage.data.segmentation import SegmentationError, read_segmentation, short_polygons, write_segmentation
from twostage.errors import DataError, brief

LARGEST_ID = 2**63 - 1


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
    files = [p for p in sorted(folder.glob("*.json")) if p.is_file() and _looks_like_coco(p)]
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
    return any(key in text for key in (b'"images"', b'"annotations"', b'"categories"'))


def _split_name(path: Path) -> str:
    return path.stem.removeprefix("instances_") or path.stem


def _image_folders(json_file: Path, root: Path, split: str) -> list[Path]:
    """Where the images of a COCO file may be, the likeliest first."""
    beside = json_file.parent
    inside = [root / split, root / split / "images", root / "images" / split, root / "images", root]
    return list(dict.fromkeys([beside, beside / "images", *inside]))


def _read(layout: Layout, options: Options, split: str) -> Dataset:
    """The data set of one JSON file, its images in whichever folder has them."""
    json_file = layout.sources[split]
    folders = [options.images] if options.images else _image_folders(json_file, layout.root, split)
    document = load_json(json_file)
    shown = json_file.name
    faults: list[Fault] = []
    categories = _categories(document, shown, faults)
    label_of = {category: label for label, (category, _) in enumerate(categories)}
    images, annotations = (_list(document, key, json_file) for key in ("images", "annotations"))
    folder = _folder(images, folders, json_file if options.require_images else None)

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
        faults=faults,
    )
    index_of = _add_images(builder, images, folder, shown)
    _add_annotations(builder, annotations, index_of, label_of, shown)
    return builder.build()


def _list(document: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    value = document.get(key, [] if key == "annotations" else None)
    if not isinstance(value, list):
        keys = ", ".join(map(repr, list(document)[:8])) or "nothing"
        what = f"{key!r} is {brief(value)}, not a list" if key in document else f"has no list {key!r}; it has {keys}"
        raise unusable(path, "broken-json", what, "Name a COCO data set, not its results")
    return value


def _categories(document: Mapping[str, Any], shown: str, faults: list[Fault]) -> list[tuple[int, str]]:
    """Ids and names in ascending order of id."""
    names: dict[int, str] = {}
    fix = 'Write {"id": 1, "name": "cat"} with ids and names that differ'
    records = document.get("categories")
    if not isinstance(records, list) or not records:
        faults.append(fault("broken-record", shown, "categories", "no list of categories, or an empty one", fix))
        records = []
    for position, record in enumerate(records):
        where = f"categories[{position}]"
        if not (isinstance(record, dict) and _is_id(record.get("id")) and isinstance(record.get("name"), str)):
            faults.append(fault("broken-record", shown, where, f"{brief(record)} lacks a whole id and a name", fix))
        elif record["id"] in names:
            faults.append(fault("duplicate-class", shown, where, f"the id {record['id']} is taken", fix))
        elif record["name"] in names.values():
            faults.append(fault("duplicate-class", shown, where, f"the name {record['name']!r} is taken", fix))
        else:
            names[record["id"]] = record["name"]
    return sorted(names.items())


def _folder(images: Sequence[Any], folders: Sequence[Path], required_by: Path | None) -> Path:
    """The folder with most of the first images. Raises FaultyDataError if none has any and `required_by` is set."""
    names = [r["file_name"] for r in images if isinstance(r, dict) and _is_name(r.get("file_name"))]
    best = max(folders, key=lambda folder: sum(exists(folder / name) for name in names[:20]))
    if names and required_by and not any(exists(folder / name) for name in names for folder in folders):
        looked = ", ".join(map(str, folders))
        message = f"none of its {len(names)} images exists, {names[0]!r} the first; looked in {looked}"
        raise unusable(required_by, "missing-image", message, "Give the folder of the images with --images")
    return best


def _add_images(builder: Builder, images: Sequence[Any], folder: Path, shown: str) -> dict[int, int]:
    """Adds the images; returns the index of each image id."""
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
            message = f"the id {number} is taken; {fresh} is used"
            builder.report("duplicate-annotation-id", shown, where, message, "Give every annotation its own id")
        if number is None or number in used:
            number, fresh = fresh, fresh + 1
        used.add(number)
        builder.add_object(**fields, source=position, annotation_id=number)
    for key, count in filled.items():
        if count:
            value = {"iscrowd": "0", "area": "the area of mask or box", "id": "a new number"}[key]
            message = f"{count} of {len(annotations)} annotations have no {key!r}; {value} is used"
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
    if area is not None and not _is_number(area):
        raise _RecordError("broken-record", f"area is {brief(area)}", "Write a number, or leave it out")
    image = index_of[number]
    return {
        "image": image,
        "box": (x, y, x + width, y + height),
        "label": label_of[category],
        "crowd": bool(record.get("iscrowd", 0)),
        "difficult": bool(record.get("difficult", 0)),
        "area": math.nan if area is None else float(area),
        "mask": read_segmentation(record.get("segmentation"), stated[image]),
    }


def _side(value: Any) -> int:
    return value if _is_id(value) and value < 2**31 else 0


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= LARGEST_ID


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**53)


def write(root: Path, datasets: Sequence[Dataset], names: Names) -> list[list[Path]]:
    """Write annotations/instances_<split>.json for splits whose images have these names; the file of each image."""
    places = []
    for dataset, of_split in zip(datasets, names, strict=True):
        path = root / "annotations" / f"instances_{dataset.split}.json"
        write_text(path, json.dumps(_document(dataset, of_split)))
        places.append([path] * len(dataset))
    return places


def _document(dataset: Dataset, names: Sequence[str]) -> dict[str, Any]:
    """A split as COCO's JSON."""
    categories = dataset.category_ids.tolist()
    return {
        "images": [
            {"id": int(number), "file_name": name, "height": int(height), "width": int(width)}
            for number, name, (height, width) in zip(dataset.image_ids, names, dataset.sizes, strict=True)
        ],
        "annotations": list(_written_annotations(dataset, categories)),
        "categories": [{"id": number, "name": name} for number, name in zip(categories, dataset.names, strict=True)],
    }


def _written_annotations(dataset: Dataset, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    image = dataset.image_indices
    for row in range(len(dataset.labels)):
        x1, y1, x2, y2 = dataset.boxes[row].tolist()
        entry = {
            "id": int(dataset.annotation_ids[row]),
            "image_id": int(dataset.image_ids[image[row]]),
            "category_id": categories[dataset.labels[row]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": float(dataset.areas[row]),
            "iscrowd": int(dataset.crowd[row]),
        }
        if dataset.difficult[row]:
            entry["difficult"] = 1
        if dataset.masks is not None and dataset.masks.kinds[row] != NONE:  # pycocotools does not accept null
            height, width = dataset.sizes[image[row]].tolist()
            entry["segmentation"] = write_segmentation(dataset.masks[row], height, width)
        yield entry


FORMAT = Format(
    name="coco",
    description="a JSON file; annotations/instances_<split>.json with <split>/; or one folder per split with a JSON",
    detect=detect,
    open=lambda layout, options: partial(_read, layout, options),
    write=write,
    image_names=nested_names,
    image_folder="{split}",
    complete=True,
)
