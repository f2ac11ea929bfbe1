"""VIA's JSON and CSV (VGG Image Annotator 1 and 2): read, not written.

An image has regions, each a shape with attributes (Dutta and Zisserman 2019, "The VIA Annotation Software for Images,
Audio and Video"); `via_regions` reads them.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from twostage.data import via_regions
from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.faults import FaultyDataError, unusable
from twostage.data.fields import pack, renamed
from twostage.data.files import display_path, load_json, require_regular, subfolders
from twostage.data.found_images import find_images
from twostage.data.layout import Format, Layout, OpenSplit, Options
from twostage.data.via_regions import Region, class_attribute, class_of, corners_and_mask, region_of
from twostage.errors import DataError, brief

_LOOKED_AT = 50  # files of a folder
_IMAGES = "_via_img_metadata"
_COLUMNS = {"filename", "region_shape_attributes", "region_attributes"}
_FIX = "Correct it in VIA, or remove the region"


class _Record(NamedTuple):
    """An image with its regions."""

    name: str
    regions: Sequence[Region]
    attributes: Mapping[str, Any]


def detect(path: Path) -> Layout | None:
    """The layout of a file of VIA, of a folder that holds one, or of one such folder per split."""
    if path.is_file():
        return Layout(FORMAT, path.parent, {path.stem: path}) if _is_via(path) else None
    inside = _files(path)
    if inside:
        return Layout(FORMAT, path, {one.stem: one for one in inside})
    sources = {folder.name: _single(files) for folder in subfolders(path) if (files := _files(folder))}
    return Layout(FORMAT, path, sources) if sources else None


def _single(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise DataError(f"{files[0].parent}: holds several files of VIA: {names}. Leave one of them.")
    return files[0]


def _files(folder: Path) -> list[Path]:
    some = (p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".json", ".csv"))
    return [p for p in islice(some, _LOOKED_AT) if _is_via(p)]


def _is_via(path: Path) -> bool:
    if path.suffix.lower() not in (".json", ".csv") or not path.is_file():
        return False
    with path.open("rb") as file:
        text = file.read(1 << 16)
    if path.suffix.lower() == ".csv":
        return b"region_shape_attributes" in text.partition(b"\n")[0]
    return b'"_via_' in text or (b'"regions"' in text and b'"filename"' in text and b'"size"' in text)


def open_splits(layout: Layout, options: Options) -> OpenSplit:
    """A function that opens one split. All files are read first: splits share classes."""
    records: dict[str, list[_Record] | FaultyDataError] = {}
    for split, path in layout.sources.items():
        try:
            records[split] = list(_records(path))
        except FaultyDataError as error:
            records[split] = error
    _require_different_images(layout, records)
    regions = [
        region
        for some in records.values()
        if not isinstance(some, FaultyDataError)
        for record in some
        for region in record.regions
        if region.shape.get("name") not in via_regions.NO_OBJECTS
    ]
    attribute = class_attribute(regions, layout.root)
    names = sorted({name for region in regions if (name := class_of(region, attribute))})
    return partial(_read, layout, options, records, attribute, names)


def _require_different_images(layout: Layout, records: "Mapping[str, list[_Record] | FaultyDataError]") -> None:
    """Raises DataError where two files have the same images, as a project and its export have."""
    seen: dict[str, str] = {}
    for split, some in records.items():
        for name in () if isinstance(some, FaultyDataError) else {record.name for record in some}:
            if name in seen:
                both = " and ".join(layout.sources[one].name for one in (seen[name], split))
                raise DataError(f"{layout.root}: {both} have the same images. Name one of them instead of the folder.")
            seen[name] = split


def _records(path: Path) -> Iterator[_Record]:
    """The images of a file. Raises FaultyDataError."""
    if path.suffix.lower() == ".csv":
        yield from _rows(path)
        return
    document = load_json(path)
    images = document.get(_IMAGES, document)
    records = images.values() if isinstance(images, dict) else []
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("filename"), str):
            raise unusable(path, "broken-json", f"{brief(record)} has no filename", "Save the annotations in VIA again")
        regions, attributes = record.get("regions") or [], record.get("file_attributes") or {}
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1 numbers them
        if not isinstance(regions, list) or not isinstance(attributes, dict):
            message = f"the regions of {record['filename']!r} are {brief(regions)}, its attributes {brief(attributes)}"
            raise unusable(path, "broken-json", message, "Save the annotations in VIA again")
        yield _Record(record["filename"].replace("\0", ""), [region_of(one) for one in regions], attributes)


def _rows(path: Path) -> Iterator[_Record]:
    """The images of a CSV: one row per region, or one without regions."""
    regions: dict[str, list[Region]] = {}
    attributes: dict[str, Mapping[str, Any]] = {}
    try:
        require_regular(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not set(rows.fieldnames or ()) >= _COLUMNS:
                lacking = ", ".join(sorted(_COLUMNS - set(rows.fieldnames or ())))
                raise unusable(path, "broken-record", f"has no column {lacking}", "Export the annotations again")
            for row in rows:
                name = row["filename"] or ""
                shape = json.loads(row["region_shape_attributes"] or "{}")
                own = regions.setdefault(name, [])
                attributes.setdefault(name, json.loads(row.get("file_attributes") or "{}"))
                if shape:
                    found = {
                        "shape_attributes": shape,
                        "region_attributes": json.loads(row["region_attributes"] or "{}"),
                    }
                    own.append(region_of(found))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, FaultyDataError):
            raise
        raise unusable(path, "unreadable-file", f"cannot be read: {error}", "Export the annotations again") from error
    for name, of_one in regions.items():
        yield _Record(name, of_one, attributes[name] if isinstance(attributes[name], dict) else {})


def _read(
    layout: Layout,
    options: Options,
    records: Mapping[str, "list[_Record] | FaultyDataError"],
    attribute: str | None,
    names: Sequence[str],
    split: str,
) -> Dataset:
    own = records[split]
    if isinstance(own, FaultyDataError):
        raise own
    path, root = layout.sources[split], layout.root
    shown = display_path(path, root)
    builder = Builder(
        root=root,
        layout="via",
        split=split,
        names=tuple(names),
        category_ids=range(1, len(names) + 1),
        place=lambda image, source: (shown, f"{builder.file_names[image]}, region {source}"),
        options=options,
    )
    folders = [options.images] if options.images else [path.parent, path.parent / "images", root, root / "images"]
    found = find_images([record.name for record in own], folders)
    if found.moved:
        builder.report("image-paths", shown, "", found.moved, "Nothing to do")
    left_out: Counter[str] = Counter()
    label_of = {name: label for label, name in enumerate(names)}
    seen: dict[str, tuple[str, int]] = {}
    for record in own:
        name, place = found.place(record.name)
        if name in seen:
            written, image = seen[name]
            if written == record.name:
                message = f"{written!r} is there twice; the regions of both are its own"
                builder.report("duplicate-file", shown, "", message, "Remove one of them in VIA")
            else:
                message = f"{record.name!r} and {written!r} end alike, and one of them is not there as written"
                fix = "Put the images into folders as in their paths"
                builder.report("missing-image", shown, "", message, fix)
                continue
        else:
            number = len(builder.file_names) + 1
            image = builder.add_image(name, place, number, fields=pack(renamed(record.attributes, "via")))
            seen[name] = record.name, image
        for source, region in enumerate(record.regions):
            if region.shape.get("name") in via_regions.NO_OBJECTS:
                left_out[str(region.shape["name"])] += 1
            else:
                _add(builder, image, region, source, attribute, label_of)
    if left_out:
        counted = ", ".join(f"{count} of type {kind}" for kind, count in left_out.most_common())
        message = f"shapes that are no boxes or areas are left out: {counted}"
        builder.report("left-out-shapes", split, "", message, "Draw rectangles or polygons for objects")
    return builder.build()


def _add(
    builder: Builder,
    image: int,
    region: Region,
    source: int,
    attribute: str | None,
    label_of: Mapping[str, int],
) -> None:
    label = label_of.get(class_of(region, attribute))
    if label is None:
        message = f"has no class in {attribute!r}: {brief(dict(region.attributes))}"
        builder.report(
            "unknown-class", *builder.place(image, source), message, "Choose one in VIA, or remove the region"
        )
        return
    try:
        corners, mask = corners_and_mask(region.shape)
    except ValueError as error:
        builder.report("box-not-numbers", *builder.place(image, source), str(error), _FIX)
        return
    (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    builder.add_object(
        image,
        (x1, y1, x2, y2),
        label,
        source=source,
        annotation_id=len(builder.objects) + 1,
        mask=mask,
        exact=True,
        fields=pack(renamed({key: value for key, value in region.attributes.items() if key != attribute}, "via")),
    )


FORMAT = Format(
    name="via",
    description="VIA's JSON or CSV beside its images, or one folder with both per split",
    detect=detect,
    open=open_splits,
)
