"""PASCAL VOC: one XML file per image, lists of names per split.

Coordinates count pixels from 1 and include the last: x1 = xmin - 1, x2 = xmax. Many tools count from 0 instead, where
x1 = xmin; `--voc-offset` selects one, and `auto` looks for a 0 in the whole data set, so that all splits agree.

Masks are in `SegmentationObject/<stem>.png`: object k of the XML has the pixels of value k, 0 is background and 255
undecided (VOC2012 development kit, section 4.2), so an image can have at most 254 objects.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from twostage.atomic import write_text
from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.extras import Extras, read_extras
from twostage.data.faults import Fault, fault, unusable
from twostage.data.files import display_path, exists, has_files, is_file, require_regular, subfolders
from twostage.data.flat import NO_MASK, Mask, pixel_mask
from twostage.data.images import EXTENSIONS
from twostage.data.layout import MASKED_SPLIT, Format, Layout, Names, OpenSplit, Options, VocOffset, Writer
from twostage.data.names import flat_names
from twostage.data.voc_xml import VocFile, read_xml, write_xml
from twostage.errors import DataError

MASK_FOLDER = "SegmentationObject"
MOST_MASKS = 254
UNDECIDED = 255

# Of annotations, then of images: PASCAL VOC and CVAT, Label Studio, FiftyOne.
_FOLDERS = (("Annotations", "JPEGImages", "images"), ("annotations", "images"), ("labels", "data"))
_LABEL_MAP = "# label:color_rgb:parts:actions"  # first line of labelmap.txt as Datumaro writes it, and CVAT with it

VocFiles = Mapping[tuple[Path, str], VocFile]


class VocSplit(NamedTuple):
    """Where a split has its XML and images, the lists of its names (none: all in the folder), and its masks.

    `nested`: its names may have folders, as those that CVAT writes.
    """

    annotations: Path
    images: Path
    listed: tuple[Path, ...] = ()
    masks: Path | None = None
    nested: bool = False


def detect(path: Path) -> Layout | None:
    """The layout of a folder with Annotations/ and JPEGImages/, or with images and XML side by side."""
    splits = _find(path) if path.is_dir() else {}
    sources = {split: next(iter(where.listed), where.annotations) for split, where in splits.items()}
    return Layout(FORMAT, path, sources) if splits else None


def _find(root: Path) -> dict[str, VocSplit]:
    """The splits of a folder; {} if it is not VOC."""
    for annotations, *image_folders in _FOLDERS:
        folder = root / annotations
        images = next((name for name in image_folders if (root / name).is_dir()), image_folders[0])
        # The folder of images is not required: they may be elsewhere, or absent while results are scored.
        if folder.is_dir() and (has_files(folder, {".xml"}) or _stems(folder, {".xml"}, nested=True)):
            lists = _lists(root / "ImageSets" / "Main")
            # Only some images of VOC have masks; they are listed as separate splits.
            drawn = _lists(root / "ImageSets" / "Segmentation")
            lists |= {f"{MASKED_SPLIT}{split}": path for split, path in drawn.items()}
            where = VocSplit(folder, root / images, (), root / MASK_FOLDER, nested=True)
            return {split: where._replace(listed=listed) for split, listed in (lists or {"all": ()}).items()}
    beside = {p.name: p for p in subfolders(root) if has_files(p, {".xml"})}
    if not beside and has_files(root, {".xml"}) and has_files(root, EXTENSIONS):
        beside = {"all": root}
    return {split: VocSplit(folder, folder) for split, folder in beside.items()}


def _lists(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The lists of splits, without those made for one class of a split (aeroplane_train.txt).

    Where there are only such, as VoTT writes them, a split has those of all classes.
    """
    lists = {p.stem: p for p in sorted(folder.glob("*.txt")) if not p.name.startswith(".")} if folder.is_dir() else {}
    whole = {
        stem: p for stem, p in lists.items() if stem.rpartition("_")[2] == stem or stem.rpartition("_")[2] not in lists
    }
    joined: dict[str, tuple[Path, ...]] = {}
    for stem, path in whole.items():
        split = stem.rpartition("_")[2] if "_" in stem and _is_of_a_class(path) else stem
        joined[split] = (*joined.get(split, ()), path)
    return joined


def _is_of_a_class(path: Path) -> bool:
    """Whether the lines of a list end with 1 or -1, for images with the class and without it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return re.match(rb"[^\n]*\S[ \t]+-?[01][ \t]*\r?\n", file.read(1 << 12) + b"\n") is not None


def open_splits(layout: Layout, options: Options) -> OpenSplit:
    """A function that opens one split. All XML files are read first: splits share classes and the first pixel."""
    splits = _find(layout.root)
    if not splits:  # removed since it was recognised
        raise DataError(f"{layout.root}: no longer a VOC data set. Check the path.")
    if options.images:
        splits = {split: where._replace(images=options.images) for split, where in splits.items()}
    files = {
        (folder, stem): read_xml(folder / name, layout.root)
        for folder, nested in sorted({(where.annotations, where.nested) for where in splits.values()})
        for stem, names in _stems(folder, {".xml"}, nested=nested).items()
        for name in names
    }
    return partial(_read, layout.root, splits, files, options)


def _read(root: Path, splits: Mapping[str, VocSplit], files: VocFiles, options: Options, split: str) -> Dataset:
    extras = read_extras(root, split)
    classes = extras.classes(sorted({o.name for f in files.values() for o in f.objects}))
    first, evidence = _first_pixel(files, options.voc_offset, root)
    folder, images, listed, mask_folder, nested = splits[split]
    image_files = _stems(images, EXTENSIONS, nested=nested)
    own = {stem for where, stem in files if where == folder}
    if listed:
        stems = sorted({stem for path in listed for stem in _listed(path, own)})
    elif options.images and len(splits) > 1:
        stems = sorted(own)  # of the other images it is not known which split they are of
    else:
        stems = _together(folder, files, image_files)
    xml_of: list[str] = []
    builder = Builder(
        root=root,
        layout="voc",
        split=split,
        names=tuple(classes),
        category_ids=tuple(classes.values()),
        place=lambda image, source: (xml_of[image], f"object {source}"),
        options=options,
        first=first,
        faults=evidence,
        common=extras.common,
        class_fields=extras.class_fields(classes),
    )
    label_of = {name: label for label, name in enumerate(classes)}
    masked = _masked(builder, mask_folder, stems)
    bare = []
    for stem in stems:
        annotation = files.get((folder, stem))
        xml = folder / f"{stem}.xml"
        xml_of.append(display_path(xml, root))
        image_file = _image_file(images, stem, image_files.get(stem, ()), annotation)
        stated = annotation.stated if annotation else (0, 0)
        fields = extras.image_fields(xml_of[-1], annotation.fields if annotation else "")
        name, number = display_path(image_file, images), extras.image_id(xml_of[-1])
        image = builder.add_image(name, image_file, number, stated, fields)
        if annotation is None:
            if listed:
                fix = f"Add it, or remove {stem!r} from {', '.join(path.name for path in listed)}"
                builder.report("missing-file", xml_of[-1], "", "the annotation does not exist", fix, image=image)
            bare.append(image_file.name)
            continue
        _add(builder, image, annotation, label_of, extras, xml, masked.get(stem))
    if bare and not listed:
        message = f"images without XML, taken as images without objects: {len(bare)}, {bare[0]!r} the first"
        builder.report("unannotated-images", display_path(folder, root), "", message, "Annotate them, or remove them")
    read = (files[folder, stem] for stem in stems if (folder, stem) in files)
    rotated = sum(item.rotated for file in read for item in file.objects)
    if rotated:
        message = f"{rotated} boxes are rotated; the upright boxes around them are read"
        builder.report("rotated-boxes", display_path(folder, root), "", message, "Nothing to do")
    return builder.build()


def _add(
    builder: Builder,
    image: int,
    annotation: VocFile,
    label_of: Mapping[str, int],
    extras: Extras,
    xml: Path,
    masked: Path | None,
) -> None:
    builder.faults.extend(annotation.faults)
    if annotation.broken:
        builder.excluded.add(image)
        return
    kept = extras.objects(builder, xml, display_path(xml, builder.root), annotation.stated)
    masks: dict[int, Mask] = {}
    if masked is not None:
        try:
            count = len(annotation.objects) + len(annotation.faults)  # faulty objects are numbered too
            masks = dict(enumerate(object_masks(masked, count, annotation.stated), start=1))
        except ValueError as error:
            fix = "Make the mask for this image and its XML, or remove it"
            builder.report("broken-mask", display_path(masked, builder.root), "", str(error), fix, image=image)
    for item in annotation.objects:
        mask = masks.get(item.number, NO_MASK)
        label, number = label_of[item.name], item.number
        extras.add_object(builder, kept, image, number, item.box, label, mask, item.difficult, fields=item.fields)


def _masked(builder: Builder, folder: Path | None, stems: Sequence[str]) -> dict[str, Path]:
    """The mask file of each image, if all images of a split have one; {} otherwise."""
    if folder is None or not folder.is_dir():
        return {}
    masks = {stem: folder / f"{stem}.png" for stem in stems}
    lacking = [path for path in masks.values() if not exists(path)]
    if not lacking:
        return masks
    if len(lacking) < len(masks):
        missing = (
            f"{len(lacking)} of {len(masks)} images have no masks ({display_path(lacking[0], builder.root)} the first)"
        )
        fix = "Add them to train on masks, or choose a split whose images have them"
        builder.report("missing-mask", builder.split, "", f"{missing}; those of the others are ignored", fix)
    return {}


def _first_pixel(files: VocFiles, offset: VocOffset, root: Path) -> tuple[int, list[Fault]]:
    """The number of the first pixel, 0 or 1, and a note with the evidence if it is 0."""
    if offset != "auto":
        return int(offset), []
    label_map = root / "labelmap.txt"
    if label_map.is_file() and label_map.read_bytes().startswith(_LABEL_MAP.encode()):
        message = "CVAT and Datumaro, which write this file, count coordinates from 0: x1 = xmin, x2 = xmax"
        return 0, [fault("voc-offset", label_map.name, "", message, "If they count from 1, use --voc-offset 1")]
    for (folder, stem), file in files.items():
        for item in file.objects:
            if min(item.box[:2]) == 0:
                message = "a minimum of 0 shows that coordinates count from 0: x1 = xmin, x2 = xmax"
                fix = "If they count from 1, use --voc-offset 1 and correct this box"
                where = f"object {item.number}"
                return 0, [fault("voc-offset", display_path(folder / f"{stem}.xml", root), where, message, fix)]
    return 1, []


def _stems(folder: Path, extensions: Collection[str], *, nested: bool) -> dict[str, tuple[str, ...]]:
    """File names by the name without extension, sorted, of the files with these extensions; `nested` in folders too."""
    files: dict[str, tuple[str, ...]] = {}
    names: list[str] = []
    for place, folders, found in os.walk(folder):
        inside = "" if Path(place) == folder else f"{Path(place).relative_to(folder).as_posix()}/"
        names += [inside + name for name in (*found, *folders) if not name.startswith(".")]
        folders[:] = [name for name in folders if nested and not name.startswith(".")]
    for name in sorted(names):
        stem, extension = os.path.splitext(name)  # noqa: PTH122
        if extension.lower() in extensions:
            files[stem] = (*files.get(stem, ()), name)
    return files


def _together(folder: Path, files: VocFiles, image_files: Mapping[str, Sequence[str]]) -> list[str]:
    """The stems of all XML files of a folder, and of the images without an XML file."""
    stems = {stem for where, stem in files if where == folder}
    claimed = {files[folder, stem].filename for stem in stems if stem not in image_files}
    return sorted(stems | {stem for stem, names in image_files.items() if claimed.isdisjoint(names)})


def _listed(path: Path, known: set[str]) -> list[str]:
    """The names in a list; lists of a single class have -1, 0 or 1 after each. Raises FaultyDataError."""
    try:
        require_regular(path)
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise unusable(path, "unreadable-file", message, "Check that it is a file you may read") from error
    stems = set()
    for line in lines:
        stem = line.strip()
        if stem not in known and stem.rpartition(" ")[2] in ("-1", "0", "1"):
            stem = stem.rpartition(" ")[0].strip()
        if stem not in known and Path(stem).suffix.lower() in EXTENSIONS:
            stem = stem[: -len(Path(stem).suffix)]
        if stem:
            stems.add(stem)
    return sorted(stems)


def _image_file(folder: Path, stem: str, same_stem: Sequence[str], annotation: VocFile | None) -> Path:
    """The image of an annotation: of the same stem, else `filename` of the XML."""
    named = (PurePosixPath(stem).parent / Path(annotation.filename).name).as_posix() if annotation else ""
    if not same_stem:
        return folder / (named if named and is_file(folder / named) else f"{stem}.jpg")
    return folder / (named if named in same_stem else same_stem[0])


def object_masks(path: Path, count: int, size: tuple[int, int]) -> list[Mask]:
    """The mask of each of `count` objects on an image of this (height, width); none for an object without pixels.

    Raises ValueError if the file does not fit these objects.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"has {image.mode} pixels, not object numbers")
            numbers = np.array(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read ({error})") from None
    if min(size) > 0 and numbers.shape != size:
        raise ValueError(f"is {numbers.shape[1]} x {numbers.shape[0]}, its image {size[1]} x {size[0]}")
    if count > MOST_MASKS:
        raise ValueError(f"has {count} objects: VOC masks allow at most {MOST_MASKS}. Write the masks as COCO")
    held = np.unique(numbers)
    unknown = held[(held > count) & (held != UNDECIDED)]
    if len(unknown):
        raise ValueError(f"has the object {unknown[0]}, and the XML lists {count}")
    return [pixel_mask(numbers == number) if number in held else NO_MASK for number in range(1, count + 1)]


def write(root: Path, datasets: Sequence[Dataset], names: Names) -> list[list[Path]]:
    """Write Annotations/ and ImageSets/ for splits whose images have these names; the file of each image."""
    places = []
    for dataset, of_split in zip(datasets, names, strict=True):
        stems = [Path(name).stem for name in of_split]
        split = dataset.split.removeprefix(MASKED_SPLIT)
        lists = root / "ImageSets" / ("Main" if split == dataset.split else "Segmentation")
        write_text(lists / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
        places.append([root / "Annotations" / f"{stem}.xml" for stem in stems])
        for index, (path, name) in enumerate(zip(places[-1], of_split, strict=True)):
            write_text(path, write_xml(dataset, index, name))
    return places


FORMAT = Format(
    name="voc",
    description="JPEGImages/, Annotations/ and ImageSets/Main/<split>.txt, or images and XML in one folder per split",
    detect=detect,
    open=open_splits,
    writer=Writer(write, image_names=lambda datasets, by_stem: flat_names(datasets), image_folder="JPEGImages"),
)
