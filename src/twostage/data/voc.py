"""PASCAL VOC: one XML file a picture, lists of names per split.

Coordinates count pixels from 1 and include the last: x1 = xmin - 1, x2 = xmax. Many tools count from 0 instead, where
x1 = xmin; `--voc-offset` says which, and `auto` looks for a 0 in the whole data set, so that all splits agree.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.extras import Extra, Extras, read_extras
from twostage.data.faults import Fault, FaultyDataError, OnError, fault
from twostage.data.files import exists, require_regular, shown
from twostage.data.flat import NO_MASK, NONE, Mask
from twostage.data.images import EXTENSIONS, Header
from twostage.data.voc_masks import object_masks

VocOffset = Literal["auto", "0", "1"]
LARGEST_FILE = 64 << 20  # bytes; a hundred thousand objects fit


class VocObject(NamedTuple):
    """An object as the XML writes it, or the fault that keeps it from being one."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    number: int


class VocFile(NamedTuple):
    """One XML file: the picture it names, the (height, width) it states (0 where it does not), objects and faults."""

    filename: str
    stated: tuple[int, int]
    objects: tuple[VocObject, ...]
    faults: tuple[Fault, ...]
    broken: bool


VocFiles = Mapping[tuple[Path, str], VocFile]


class VocFolders(NamedTuple):
    """Where each split of a VOC data set has its XML and pictures; `lists` are None where it is all in the folder."""

    annotations: Mapping[str, Path]
    images: Mapping[str, Path]
    lists: Mapping[str, Path | None]
    masks: Path | None = None


def read_annotations(folders: VocFolders, root: Path) -> VocFiles:
    """Every XML file of the data set by its folder and stem: classes and the first pixel are those of all splits."""
    return {
        (folder, Path(name).stem): read_xml(folder / name, root)
        for folder in sorted(set(folders.annotations.values()))
        for names in _stems(folder, {".xml"}).values()
        for name in names
    }


def read_voc(
    folders: VocFolders,
    files: VocFiles,
    *,
    root: Path,
    split: str,
    offset: VocOffset,
    on_error: OnError,
    mend: bool,
    require_images: bool,
    look: Callable[[str], Header],
) -> Dataset:
    """One split of a VOC data set whose annotations are `files`; its classes are all of theirs, in sorted order.

    Raises FaultyDataError.
    """
    extras = read_extras(root, split)
    classes = extras.classes(sorted({o.name for f in files.values() for o in f.objects}))
    first, evidence = _first_pixel(files, offset, root)
    folder, pictures = folders.annotations[split], _stems(folders.images[split], EXTENSIONS)
    listed = folders.lists[split]
    faults = list(evidence)
    stems = _listed(listed, {s for f, s in files if f == folder}) if listed else _together(folder, files, pictures)
    xml_of: list[str] = []

    def place(image: int, source: int) -> tuple[str, str]:
        return xml_of[image], f"object {source}"

    builder = Builder(
        root=root,
        layout="voc",
        split=split,
        names=tuple(classes),
        category_ids=tuple(classes.values()),
        place=place,
        look=look,
        mend=mend,
        require_images=require_images,
        thin=float(first),
        faults=faults,
    )
    label_of = {name: label for label, name in enumerate(classes)}
    masked = _masked(builder, folders.masks, stems)
    bare = []
    for stem in stems:
        found = files.get((folder, stem))
        xml = folder / f"{stem}.xml"
        xml_of.append(shown(xml, root))
        picture = _picture(folders.images[split], stem, pictures.get(stem, ()), found)
        stated = found.stated if found else (0, 0)
        image = builder.add_image(picture.name, picture, extras.image_id(xml_of[-1]), stated)
        if found is None:
            if listed:
                fix = f"Bring it, or remove {stem!r} from {listed.name}"
                builder.report("missing-file", xml_of[-1], "", "the annotation does not exist", fix, image=image)
            bare.append(picture.name)
            continue
        _add(builder, image, found, first, label_of, extras, xml, masked.get(stem))
    if bare and not listed:
        message = f"pictures without XML, taken as images without objects: {len(bare)}, {bare[0]!r} the first"
        builder.report("unannotated-images", shown(folder, root), "", message, "Annotate them, or take them away")
    return builder.build(on_error)


def _add(
    builder: Builder,
    image: int,
    found: VocFile,
    first: int,
    label_of: Mapping[str, int],
    extras: Extras,
    xml: Path,
    masked: Path | None,
) -> None:
    builder.faults.extend(found.faults)
    if found.broken:
        builder.spoil(image)
        return
    kept = extras.objects(builder, xml, shown(xml, builder.root), found.stated)
    masks: dict[int, Mask] = {}
    if masked is not None:
        try:
            count = len(found.objects) + len(found.faults)  # a fault is an object that is none
            masks = dict(enumerate(object_masks(masked, count, found.stated), start=1))
        except ValueError as error:
            fix = "Make the mask for this picture and its XML, or remove it"
            builder.report("broken-mask", shown(masked, builder.root), "", str(error), fix, image=image)
    for item in found.objects:
        left, top, right, bottom = item.box
        extra = kept[item.number - 1] if item.number <= len(kept) else Extra()
        builder.add_object(
            image,
            extra.box or (left - first, top - first, right, bottom),
            label_of[item.name],
            source=item.number,
            annotation_id=extras.object_id() if extra.id is None else extra.id,
            crowd=extra.crowd,
            difficult=item.difficult,
            area=extra.area,
            mask=extra.mask if extra.mask.kind != NONE else masks.get(item.number, NO_MASK),
        )


def _masked(builder: Builder, folder: Path | None, stems: Sequence[str]) -> dict[str, Path]:
    """The picture of each image's objects, where all images of a split have one: few of VOC's have."""
    if folder is None or not folder.is_dir():
        return {}
    found = {stem: folder / f"{stem}.png" for stem in stems}
    lacking = [path for path in found.values() if not exists(path)]
    if not lacking:
        return found
    if len(lacking) < len(found):
        missing = f"{len(lacking)} of {len(found)} images have no masks ({shown(lacking[0], builder.root)} the first)"
        fix = "Bring them to learn masks, or choose a split whose images have them"
        builder.report("missing-mask", builder.split, "", f"{missing}; those of the others are not read", fix)
    return {}


def read_xml(path: Path, root: Path) -> VocFile:
    """What one XML file says; what it says wrongly stands in its faults."""
    name = shown(path, root)
    try:
        tree = parse_xml(path)
        if tree.tag != "annotation":
            raise ValueError(f"its outermost element is <{tree.tag}>, not <annotation>")
    except (OSError, ValueError, LookupError, ExpatError) as error:
        fix = "Write the annotation again, or remove it together with its picture"
        return VocFile("", (0, 0), (), (fault("broken-xml", name, "", str(error), fix),), broken=True)
    objects, faults = [], []
    for number, element in enumerate(tree.iterfind("object"), start=1):
        try:
            objects.append(_object(element, number))
        except ValueError as error:
            fix = "Write name and bndbox with xmin, ymin, xmax, ymax, or remove the object"
            code = "box-not-numbers" if element.findtext("name") else "broken-record"
            faults.append(fault(code, name, f"object {number}", str(error), fix))
    stated = tuple(_whole(tree.findtext(f"size/{side}")) for side in ("height", "width"))
    filename = (tree.findtext("filename") or "").strip()
    return VocFile(filename, (stated[0], stated[1]), tuple(objects), tuple(faults), broken=False)


def parse_xml(path: Path) -> Element:
    """The tree of a small XML file without DTD, so that no entity can grow or reach outside. Raises ValueError."""

    def refuse(name: str, *_: object) -> NoReturn:
        raise ValueError(f"declares a document type <!DOCTYPE {name}>, which may hold entity bombs; remove that line")

    require_regular(path)
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"is larger than {LARGEST_FILE >> 20} MiB")
    builder = TreeBuilder()
    parser = ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(path.read_bytes(), True)
    return builder.close()


def _object(element: Element, number: int) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("the object has no name")
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"the object {name!r} has no bndbox")
    sides = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = box.findtext(side)
        try:
            sides.append(float(text or ""))
        except ValueError:
            raise ValueError(f"{side} of {name!r} is {text!r}, not a number") from None
    difficult = (element.findtext("difficult") or "0").strip() in ("1", "true", "True")
    return VocObject(name, (sides[0], sides[1], sides[2], sides[3]), difficult, number)


def _whole(text: str | None) -> int:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def _first_pixel(files: VocFiles, offset: VocOffset, root: Path) -> tuple[int, list[Fault]]:
    """The number of the first pixel, 0 or 1, and the note that says why it is 0."""
    if offset != "auto":
        return int(offset), []
    for (folder, stem), file in files.items():
        for item in file.objects:
            if min(item.box[:2]) == 0:
                message = "a minimum of 0 shows that coordinates count from 0: x1 = xmin, x2 = xmax"
                fix = "If they count from 1, say --voc-offset 1 and correct this box"
                where = f"object {item.number}"
                return 0, [fault("voc-offset", shown(folder / f"{stem}.xml", root), where, message, fix)]
    return 1, []


def _stems(folder: Path, extensions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """File names by stem, in sorted order, of the files in a folder that end so."""
    found: dict[str, tuple[str, ...]] = {}
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries)
    for name in names:
        stem, extension = Path(name).stem, Path(name).suffix
        if extension.lower() in extensions and not name.startswith("."):
            found[stem] = (*found.get(stem, ()), name)
    return found


def _together(folder: Path, files: VocFiles, pictures: Mapping[str, Sequence[str]]) -> list[str]:
    """The stems of all XML files of a folder, and of the pictures that no XML file belongs to."""
    stems = {stem for where, stem in files if where == folder}
    claimed = {files[folder, stem].filename for stem in stems if stem not in pictures}
    return sorted(stems | {stem for stem, names in pictures.items() if claimed.isdisjoint(names)})


def _listed(path: Path, known: set[str]) -> list[str]:
    """The names in a list; one made for a single class has -1, 0 or 1 behind each. Raises FaultyDataError."""
    try:
        require_regular(path)
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        message, fix = f"cannot be read: {error.strerror or error}", "Check that it is a file you may read"
        raise FaultyDataError(f"{path}: cannot be used.", [fault("unreadable-file", path, "", message, fix)]) from error
    stems = set()
    for line in lines:
        stem = line.strip()
        if stem not in known and stem.rpartition(" ")[2] in ("-1", "0", "1"):
            stem = stem.rpartition(" ")[0].strip()
        if stem:
            stems.add(stem)
    return sorted(stems)


def _picture(folder: Path, stem: str, same_stem: Sequence[str], found: VocFile | None) -> Path:
    """The picture of an annotation: of the same stem, else the one that the XML names."""
    named = Path(found.filename).name if found else ""
    if not same_stem:
        return folder / (named if named and exists(folder / named) else f"{stem}.jpg")
    return folder / (named if named in same_stem else same_stem[0])
