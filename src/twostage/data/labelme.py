"""labelme's JSON, one file per image beside it (also X-AnyLabeling's): read, not written.

Coordinates are pixels. Which shapes are objects is written in `labelme_shapes`.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from twostage.data import labelme_shapes
from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.faults import FaultyDataError, fault, unusable
from twostage.data.fields import pack, renamed
from twostage.data.files import below, display_path, is_file, load_json, subfolders
from twostage.data.images import EXTENSIONS
from twostage.data.layout import Format, Layout, OpenSplit, Options
from twostage.errors import DataError

# What is read, or only says how the file was made.
_READ = ("version", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth")


class _File(NamedTuple):
    """One JSON file without its image, or why it cannot be used."""

    document: Mapping[str, Any]
    broken: FaultyDataError | None = None


Files = Mapping[Path, _File]


def detect(path: Path) -> Layout | None:
    """The layout of a folder of labelme files, or of one such folder per split."""
    if not path.is_dir():
        if path.suffix.lower() == ".json" and _looks_like_labelme(path):
            raise DataError(f"{path}: is a file of labelme, which has one for each image. Name its folder.")
        return None
    if _holds_labelme(path):
        return Layout(FORMAT, path, {"all": path})
    sources = {folder.name: folder for folder in subfolders(path) if _holds_labelme(folder)}
    return Layout(FORMAT, path, sources) if sources else None


def _holds_labelme(folder: Path) -> bool:
    plain = (path for path in sorted(folder.glob("*.json")) if not path.name.startswith("."))
    return any(map(_looks_like_labelme, islice(plain, 3)))


def _looks_like_labelme(path: Path) -> bool:
    """By the keys near the beginning and the end: the image itself may be in between."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        text = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        text += file.read()
    return b'"shapes"' in text and (b'"imagePath"' in text or b'"imageHeight"' in text or b'"imageData"' in text)


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
    """The files of a folder and its folders; other JSON is left out."""
    files = {}
    for path in sorted(below(folder, "*.json")):
        if not _looks_like_labelme(path):
            continue
        try:
            document = load_json(path)
            if not isinstance(document.get("shapes"), list):
                raise unusable(path, "broken-json", "has no list of shapes", "Label the image again")
            files[path] = _File({key: value for key, value in document.items() if key != "imageData"})
        except FaultyDataError as error:
            files[path] = _File({}, error)
    return files


def _read(layout: Layout, options: Options, files: Mapping[Path, Files], names: Sequence[str], split: str) -> Dataset:
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
    left_out: Counter[str] = Counter()
    image_of = {where: _image_files(some, options.images) for where, some in files.items()}
    for path, file in files[folder].items():
        shown, image_file = display_path(path, root), image_of[folder][path]
        stated = _side(file.document.get("imageHeight")), _side(file.document.get("imageWidth"))
        others = pack(renamed({k: v for k, v in file.document.items() if v}, "labelme"), _READ)
        image = builder.add_image(display_path(image_file, root), image_file, len(places) + 1, stated, others)
        places.append(shown)
        if file.broken is not None:
            builder.faults += [fault(f.code, shown, f.object, f.message, f.fix) for f in file.broken.faults]
            builder.excluded.add(image)
            continue
        for shapes in labelme_shapes.objects(builder, file.document["shapes"], shown, stated, left_out):
            labelme_shapes.add(builder, image, shapes, label_of, stated)
    taken = {path for some in image_of.values() for path in some.values()}
    if options.images is None or len(files) == 1:  # else their split is not known
        _add_bare(builder, options.images or folder, taken, places)
    labelme_shapes.report_left_out(builder, left_out)
    return builder.build()


def _add_bare(builder: Builder, folder: Path, taken: set[Path], places: list[str]) -> None:
    """Adds the images of a folder that no file is about."""
    stems = {path.with_suffix("") for path in taken}
    bare = [
        path
        for path in sorted(below(folder, "*"))
        if path.suffix.lower() in EXTENSIONS and path.with_suffix("") not in stems
    ]
    for path in bare:
        places.append(display_path(path.with_suffix(".json"), builder.root))
        builder.add_image(display_path(path, builder.root), path, len(places))
    if bare:
        message = f"images without JSON, taken as images without objects: {len(bare)}, {bare[0].name!r} the first"
        fix = "Annotate them, or remove them"
        builder.report("unannotated-images", display_path(folder, builder.root), "", message, fix)


def _image_files(files: Files, images: Path | None) -> dict[Path, Path]:
    """The image of each file: `imagePath` as written, its last part, or the image of the same stem.

    Where `imagePath` is the image of another file, by whose copy a file was made, that of the same stem.
    """
    stems = {path.stem for path in files}
    found = {}
    for path, file in files.items():
        written = str(file.document.get("imagePath") or "").replace("\\", "/").replace("\0", "")
        folder = images or path.parent
        last = written.rpartition("/")[2]
        own = [folder / f"{path.stem}{extension}" for extension in sorted(EXTENSIONS)]
        named = [path.parent / written] * bool(written) + [folder / last] * bool(last)
        of_another = Path(last).stem != path.stem and Path(last).stem in stems
        candidates = [*own, *named] if of_another else [*named, *own]
        found[path] = next(filter(is_file, candidates), folder / (last or f"{path.stem}.jpg"))
    return found


def _side(value: Any) -> int:
    return value if type(value) is int and 0 < value < 2**31 else 0


FORMAT = Format(
    name="labelme",
    description="labelme's JSON files beside their images, or one such folder per split",
    detect=detect,
    open=open_splits,
)
