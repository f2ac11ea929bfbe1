"""VOC's XML: one annotation file per image, read without trusting it, and written.

A reader refuses document types, so that no entity can expand or reach other files.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers.expat import ExpatError, ParserCreate

from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, fault
from twostage.data.files import display_path, require_regular

LARGEST_FILE = 64 << 20  # bytes; a hundred thousand objects fit


class VocObject(NamedTuple):
    """An object as in the XML, `number` counted from 1."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    number: int


class VocFile(NamedTuple):
    """One XML file: `filename`, the stated (height, width), 0 where there is none, objects and faults."""

    filename: str
    stated: tuple[int, int]
    objects: tuple[VocObject, ...]
    faults: tuple[Fault, ...]
    broken: bool


def read_xml(path: Path, root: Path) -> VocFile:
    """The content of one XML file, with its faults."""
    name = display_path(path, root)
    try:
        tree = parse_xml(path)
        if tree.tag != "annotation":
            raise ValueError(f"its outermost element is <{tree.tag}>, not <annotation>")
    except (OSError, ValueError, LookupError, ExpatError) as error:
        fix = "Write the annotation again, or remove it together with its image"
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
    """The tree of a small XML file without DTD. Raises ValueError."""

    def refuse(name: str, *_: object) -> NoReturn:
        raise ValueError(
            f"declares a document type <!DOCTYPE {name}>, which may contain entity bombs; remove that line"
        )

    require_regular(path)
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"is larger than {LARGEST_FILE >> 20} MiB")
    builder = ElementTree.TreeBuilder()
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


def write_xml(dataset: Dataset, index: int, name: str) -> str:
    """The annotation of an image: pixels counted from 1, with fractions if the boxes have them."""
    height, width = dataset.sizes[index].tolist()
    objects = dataset.objects(index)
    written = []
    columns = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.difficult.tolist(), strict=True)
    for (x1, y1, x2, y2), label, difficult in columns:
        sides = [int(v) if v == int(v) else v for v in (x1 + 1, y1 + 1, x2, y2)]
        written.append((dataset.names[label], int(difficult), sides))
    return annotation(name, (height, width), written)


def annotation(filename: str, size: tuple[int, int], objects: Iterable[tuple[str, int, Sequence[float]]]) -> str:
    """The text of an annotation file: of each object its name, whether it is difficult, and its sides as written."""
    height, width = size
    root = ElementTree.Element("annotation")
    _children(root, filename=filename)
    _children(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _children(root, segmented=0)
    for name, difficult, (xmin, ymin, xmax, ymax) in objects:
        node = ElementTree.SubElement(root, "object")
        _children(node, name=name, pose="Unspecified", truncated=0, difficult=difficult)
        _children(ElementTree.SubElement(node, "bndbox"), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _children(node: ElementTree.Element, **values: Any) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(node, tag).text = str(value)
