"""labelme's JSON, one file per image beside it (also X-AnyLabeling's): read, not written.

Coordinates are pixels. Which shapes are objects is written in `labelme_shapes`.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from twostage.data import labelme_shapes
from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.faults import FaultyDataError, fault, unusable
from twostage.data.fields import pack, renamed
from twostage.data.files import display_path, load_json, subfolders
from twostage.data.images import EXTENSIONS
from twostage.data.layout import Format, Layout, OpenSplit, Options

# What is read, or only says how the file was made.
_READ = ("version", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth")


class _File(NamedTuple):
    """One JSON file without its image, or why it cannot be used."""

    document: Mapping[str, Any]
    broken: FaultyDataError | None = None


def detect(path: Path) -> Layout | None:
    """The layout of a folder of labelme files, or of one such folder per split."""
    if not path.is_dir():
        return None
    if _holds_labelme(path):
        return Layout(FORMAT, path, {"all": path})
    sources = {folder.name: folder for folder in subfolders(path) if _holds_labelme(folder)}
    return Layout(FORMAT, path, sources) if sources else None


def _holds_labelme(folder: Path) -> bool:
    """By the keys near the beginning and the end of one of its files: the image itself may be in between."""
    for path in sorted(folder.glob("*.json"))[:3]:
        if not path.is_file():
            continue
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            text = file.read(1 << 16)
            file.seek(max(0, size - (1 << 16)))
            text += file.read()
        if b'"shapes"' in text and (b'"imagePath"' in text or b'"imageHeight"' in text):
            return True
    return False


def open_splits(layout: Layout, options: Options) -> OpenSplit:
    """A function that opens one split. All files are read first: splits share classes."""
    files = {folder: _files(folder) for folder in layout.sources.values()}
    labels = {
        shape["label"].strip()
        for by_path in files.values()
        for file in by_path.values()
        for shape in file.document.get("shapes", [])
        if labelme_shapes.is_object(shape)
    }
    return partial(_read, layout, options, files, sorted(labels))


def _files(folder: Path) -> dict[Path, _File]:
    files = {}
    for path in sorted(folder.glob("*.json")):
        try:
            document = load_json(path)
            if not isinstance(document.get("shapes"), list):
                raise unusable(path, "broken-json", "has no list of shapes", "Remove it if it is no file of labelme")
            files[path] = _File({key: value for key, value in document.items() if key != "imageData"})
        except FaultyDataError as error:
            files[path] = _File({}, error)
    return files


def _read(
    layout: Layout, options: Options, files: Mapping[Path, Mapping[Path, _File]], names: Sequence[str], split: str
) -> Dataset:
    folder, root = layout.sources[split], layout.root
    places: list[str] = []
    builder = Builder(
        root=root,
        layout="labelme",
        split=split,
        names=tuple(names),
        category_ids=range(1, len(names) + 1),
        place=lambda image, source: (places[image], f"shapes[{source}]"),
        options=options,
    )
    if not names:
        builder.report("empty-split", split, "", "no file has a shape with a label", "Label some images")
    label_of = {name: label for label, name in enumerate(names)}
    taken: set[Path] = set()
    left_out: Counter[str] = Counter()
    for path, file in files[folder].items():
        shown = display_path(path, root)
        if file.broken is not None:
            builder.faults += [fault(f.code, shown, f.object, f.message, f.fix) for f in file.broken.faults]
            continue
        image_file = _image_file(path, file.document, options.images)
        taken.add(image_file)
        stated = _side(file.document.get("imageHeight")), _side(file.document.get("imageWidth"))
        others = pack(renamed({k: v for k, v in file.document.items() if v}, "labelme"), _READ)
        image = builder.add_image(display_path(image_file, root), image_file, len(places) + 1, stated, others)
        places.append(shown)
        for shapes in labelme_shapes.objects(builder, file.document["shapes"], shown, stated, left_out):
            labelme_shapes.add(builder, image, shapes, label_of, stated)
    _add_bare(builder, options.images or folder, taken, places)
    rotated = left_out.pop("rotated", 0)
    if rotated:
        message = f"{rotated} rotated rectangles are read as the upright boxes around them"
        builder.report("rotated-boxes", split, "", message, "Nothing to do")
    if left_out:
        counted = ", ".join(f"{count} of type {kind}" for kind, count in left_out.most_common())
        message = f"shapes that are no boxes or areas are left out: {counted}"
        builder.report("left-out-shapes", split, "", message, "Draw rectangles or polygons for objects")
    return builder.build()


def _add_bare(builder: Builder, folder: Path, taken: set[Path], places: list[str]) -> None:
    """Adds the images of a folder that no file is about."""
    stems = {path.with_suffix("") for path in taken}
    bare = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in EXTENSIONS and path not in taken and path.with_suffix("") not in stems
    ]
    for path in bare:
        places.append(display_path(path.with_suffix(".json"), builder.root))
        builder.add_image(display_path(path, builder.root), path, len(places))
    if bare:
        message = f"images without JSON, taken as images without objects: {len(bare)}, {bare[0].name!r} the first"
        fix = "Annotate them, or remove them"
        builder.report("unannotated-images", display_path(folder, builder.root), "", message, fix)


def _image_file(path: Path, document: Mapping[str, Any], images: Path | None) -> Path:
    """The image of a file: `imagePath` as written, its last part, or an image of the same stem."""
    written = str(document.get("imagePath") or "").replace("\\", "/").replace("\0", "")
    folder = images or path.parent
    last = written.rpartition("/")[2]
    beside = [folder / f"{path.stem}{extension}" for extension in sorted(EXTENSIONS)]
    candidates = [path.parent / written] * bool(written) + [folder / last] * bool(last) + beside
    return next((one for one in candidates if one.is_file()), folder / (last or f"{path.stem}.jpg"))


def _side(value: Any) -> int:
    return value if type(value) is int and 0 < value < 2**31 else 0


FORMAT = Format(
    name="labelme",
    description="labelme's JSON files beside their images, or one such folder per split",
    detect=detect,
    open=open_splits,
)
