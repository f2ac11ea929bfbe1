"""YOLO: a file with names and splits (`yolo_config`), one text file of rows per image.

A row is `class cx cy w h`, or `class x y x y x y ...` for a polygon, as fractions of the image's size. An image
`images/a.jpg` has its rows in `labels/a.txt`; without that file it has no objects (Ultralytics, docs/datasets/detect).
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from twostage.atomic import write_text
from twostage.data import yolo_config, yolo_labels, yolo_rows
from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.extras import Extras, read_extras
from twostage.data.faults import FaultyDataError, unusable
from twostage.data.fields import unpack
from twostage.data.files import below, display_path, exists, require_regular
from twostage.data.flat import NO_MASK, POLYGONS, unpack_polygons
from twostage.data.found_images import find_images
from twostage.data.images import EXTENSIONS
from twostage.data.layout import MASKED_SPLIT, Format, Layout, Names, Options, Writer
from twostage.data.names import nested_names
from twostage.data.notation import Notation
from twostage.data.yolo_config import SPLIT_KEYS
from twostage.data.yolo_rows import Rows
from twostage.errors import DataError, UsageError

log = logging.getLogger("twostage.data")


def detect(path: Path) -> Layout | None:
    """The layout of a data.yaml or its like, or of a folder that holds one; its splits are the keys that it has."""
    config = yolo_config.find(path)
    if config is None:
        return None
    document = yolo_config.load(config)
    splits = yolo_config.splits(document)
    if not splits:
        yolo_config.broken(config, f"names no split; it may have {', '.join(SPLIT_KEYS)}")
    root = path if path.is_dir() else path.parent
    return Layout(FORMAT, root, dict.fromkeys(splits, config))


def _read(layout: Layout, options: Options, split: str) -> Dataset:
    path, root = layout.sources[split], layout.root
    document = yolo_config.load(path)
    names = yolo_config.names_of(document, path)
    extras = read_extras(root, split)
    classes = extras.classes(names)
    if tuple(classes) != names:  # the names were changed since
        extras = Extras({}, {})
        classes = extras.classes(names)
    shown_labels: list[str] = []
    builder = Builder(
        root=root,
        layout="yolo",
        split=split,
        names=names,
        category_ids=tuple(classes.values()),
        place=lambda image, source: (shown_labels[image], f"line {source}"),
        # The rows are fractions of the images' sizes.
        options=options._replace(require_images=True),
        notation=Notation("cxcywh", "fractions"),
        common=extras.common or yolo_config.other(document),
        class_fields=extras.class_fields(names),
    )
    bare = []
    label_files: list[Path] = []
    rows: Rows = []
    label_of = yolo_rows.by_name(names)
    image_files, reports = _image_files(document, path, split, options.images)
    for code, message, fix in reports:
        builder.report(code, path.name, split, message, fix)
    for image_file in image_files:
        label_file = yolo_labels.label_file(image_file)
        label_files.append(label_file)
        shown_labels.append(display_path(label_file, root))
        number, fields = extras.image_id(shown_labels[-1]), extras.image_fields(shown_labels[-1])
        image = builder.add_image(display_path(image_file, root), image_file, number, fields=fields)
        if exists(label_file):
            rows.append(list(yolo_rows.read(builder, label_file, shown_labels[-1], image, label_of)))
        else:
            rows.append([])
            bare.append(image_file.name)
    if bare:
        message = f"images without label file, taken as images without objects: {len(bare)}, {bare[0]!r} the first"
        builder.report("unannotated-images", path.name, split, message, "Write an empty label file if this is intended")
    others = _of_other_splits(layout, document, path, split) if options.images is None else []
    taken = [*label_files, *map(yolo_labels.label_file, others)]
    yolo_labels.report_left_over(builder, label_files, taken, {file.parent for file in image_files})
    rows = yolo_rows.of_known_classes(builder, rows, shown_labels)
    found = yolo_rows.understood(builder, rows, shown_labels, document.get("kpt_shape"))
    if options.boxes in ("auto", "format"):
        own = [extras.is_unchanged(file, shown) for file, shown in zip(label_files, shown_labels, strict=True)]
        found = yolo_rows.without_pixels(builder, found, shown_labels, own)
    sizes, _ = builder.measured
    for image, lines in enumerate(found):
        height, width = sizes[image].tolist()
        kept = extras.objects(builder, label_files[image], shown_labels[image], (height, width)) if lines else []
        for line, label, values in lines:
            box, mask = yolo_rows.shape(values, height, width)
            extras.add_object(builder, kept, image, line, box, label, mask, exact=mask is not NO_MASK)
    return builder.build()


def _image_files(
    document: Mapping[str, Any], path: Path, split: str, images: Path | None
) -> tuple[list[Path], list[tuple[str, str, str]]]:
    """The images of a split in sorted order, and what is to be reported of lists: code, message, fix.

    With the folder `images`, those of the split's place in it.
    """
    named = document[split] if images is None else _within(images, document, path, split)
    files: dict[Path, str] = {}  # and how they are listed
    reports: list[tuple[str, str, str]] = []
    for entry in named if isinstance(named, list) else [named]:
        place = entry if isinstance(entry, Path) else _resolve(str(entry), document, path)
        if place.is_dir():
            files.update(dict.fromkeys((p for p in below(place, "*") if p.suffix.lower() in EXTENSIONS), ""))
            continue
        names = _listed(place)
        where = find_images(names, [place.parent])
        if where.moved:
            reports.append(("image-paths", where.moved, "Nothing to do"))
        for name in names:
            file = where.place(name)[1]
            if files.setdefault(file, name) not in (name, ""):
                message = f"{name!r} and {files[file]!r} end alike, and one of them is not there as written"
                reports.append(("missing-image", message, "Put the images into folders as in their paths"))
    if not files:
        message = f"no images in {named}"
        fix = "Add them: YOLO's rows are fractions of the images' sizes"
        raise unusable(path, "missing-image", message, fix, split)
    return sorted(files), reports


def _within(images: Path, document: Mapping[str, Any], path: Path, split: str) -> Path:
    """The place of a split in a folder of images: of the end of its entry, or of its name; all of it for one split."""
    entry = document[split]
    parts = [part for part in str(entry).replace("\\", "/").split("/") if part not in ("", ".", "..")]
    places = ["/".join(parts[first:]) for first in range(len(parts))] if isinstance(entry, str) else []
    found = next((images / place for place in [*places, split] if (images / place).is_dir()), None)
    if found is None and len(yolo_config.splits(document)) > 1:
        message = f"the images are in one folder, {images}, and there are several splits"
        raise unusable(path, "missing-file", message, f"Give a folder that has {split}/ and the others", split)
    return found or images


def _of_other_splits(layout: Layout, document: Mapping[str, Any], path: Path, split: str) -> list[Path]:
    files: list[Path] = []
    for other in layout.sources:
        if other != split:
            with suppress(FaultyDataError):  # it is reported when that split is opened
                files += _image_files(document, path, other, None)[0]
    return files


def _resolve(entry: str, document: Mapping[str, Any], path: Path) -> Path:
    """The folder or list of a split: under `path:` or beside data.yaml, also without the ../ of some exports."""
    base = yolo_config.base(path, document)
    bare = entry
    while bare.startswith("../"):
        bare = bare[3:]
    candidates = [base / entry, path.parent / entry, path.parent / bare]
    for candidate in candidates:
        if exists(candidate):
            return candidate
    looked = ", ".join(dict.fromkeys(map(str, candidates)))
    message = f"names {entry!r}, which does not exist; looked at {looked}"
    raise unusable(path, "missing-file", message, "Correct the path in data.yaml")


def _listed(place: Path) -> list[str]:
    """The lines of a text file of paths; relative ones start at its folder."""
    try:
        require_regular(place)
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unusable(
            place, "unreadable-file", f"is not a list of images: {error}", "Name a folder or a list"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def splits_of(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The splits under keys of data.yaml: train2017 becomes train, and so does a single split of any name.

    VOC's additional lists of images with masks are left out if there are others.
    """
    first = [dataset for dataset in datasets if not dataset.split.startswith(MASKED_SPLIT)]
    if first and len(first) < len(datasets):
        left = ", ".join(dataset.split for dataset in datasets if dataset.split.startswith(MASKED_SPLIT))
        log.warning(
            "YOLO cannot hold a second list of images: %s and their masks are left out. Convert to COCO to keep them.",
            left,
        )
        datasets = first
    renamed = []
    for dataset in datasets:
        split = dataset.split.removeprefix(MASKED_SPLIT)
        known = re.match(r"(trainval|train|minival|validation|valid|val|test)(?![a-z])", split)
        if known is None and len(datasets) > 1:
            raise UsageError(
                f"{dataset.root}: YOLO's data.yaml has no key for the split {dataset.split!r}. Rename it to train, "
                "val or test, or convert its annotation file alone."
            )
        renamed.append(replace(dataset, split=known[1] if known else "train"))
        if renamed[-1].split != dataset.split:
            log.info("The split %r is called %r in YOLO's layout.", dataset.split, renamed[-1].split)
    if len({d.split for d in renamed}) < len(renamed):
        names = ", ".join(d.split for d in datasets)
        raise UsageError(f"{datasets[0].root}: two of the splits {names} would get the same name in YOLO's layout.")
    return renamed


def write(root: Path, datasets: Sequence[Dataset], names: Names) -> list[list[Path]]:
    """Write data.yaml, and labels/<split>/*.txt for splits whose images have these names; the file of each image.

    Raises UsageError for a split that YOLO has no key for, DataError for one without images.
    """
    for dataset in datasets:
        if not len(dataset):
            raise DataError(
                f"{dataset.root}: the split {dataset.split!r} has no images, and YOLO's layout cannot hold that. "
                "Remove the split, or convert to COCO or VOC."
            )
        if dataset.split not in SPLIT_KEYS:
            raise UsageError(f"data.yaml has no key for the split {dataset.split!r}; it has {', '.join(SPLIT_KEYS)}.")
    splits = {dataset.split: f"images/{dataset.split}" for dataset in datasets}
    document = {"names": dict(enumerate(datasets[0].names)), "nc": len(datasets[0].names), **splits}
    common, *others = {dataset.fields.common if dataset.fields else "" for dataset in datasets}
    if not others and yolo_config.is_small(common):  # else twostage.json keeps those of each split
        document = {**{key: value for key, value in unpack(common).items() if key not in yolo_config.READ}, **document}
    write_text(root / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    places = []
    for dataset, of_split in zip(datasets, names, strict=True):
        places.append([(root / "labels" / dataset.split / name).with_suffix(".txt") for name in of_split])
        outlines = _outlines(dataset)
        for index, path in enumerate(places[-1]):
            write_text(path, "".join(f"{row}\n" for row in _written_rows(dataset, index, outlines)))
    return places


def _outlines(dataset: Dataset) -> Sequence[Sequence[float]] | None:
    """The polygon of every object if all have exactly one: a file has polygons or boxes, not both."""
    masks = dataset.masks
    if masks is None or not len(masks) or any(masks[row].kind != POLYGONS for row in range(len(masks))):
        return None
    rings = [unpack_polygons(masks[row].data) for row in range(len(masks))]
    return None if any(len(of_one) != 1 for of_one in rings) else [of_one[0].tolist() for of_one in rings]


def _written_rows(dataset: Dataset, index: int, outlines: Sequence[Sequence[float]] | None) -> list[str]:
    height, width = dataset.sizes[index].tolist()
    start, end = dataset.offsets[index : index + 2].tolist()
    rows = []
    for row in range(start, end):
        if outlines is None:
            x1, y1, x2, y2 = dataset.boxes[row].tolist()
            numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        else:
            numbers = [v / (height if i % 2 else width) for i, v in enumerate(outlines[row])]
        rows.append(" ".join([str(int(dataset.labels[row])), *map(str, numbers)]))
    return rows


FORMAT = Format(
    name="yolo",
    description="data.yaml, Darknet's obj.data, or classes.txt with images/ and labels/",
    detect=detect,
    open=lambda layout, options: partial(_read, layout, options),
    writer=Writer(
        write,
        image_names=lambda datasets, by_stem: nested_names(datasets, True),
        image_folder="images/{split}",
        splits_of=splits_of,
    ),
)
