"""VOC's XML: one annotation file per image, read without trusting it, and written.

A reader refuses document types, so that no entity can expand or reach other files.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers.expat import ExpatError, ParserCreate

from twostage.data import foreign
from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, fault
from twostage.data.fields import pack, renamed, unpack
from twostage.data.files import display_path, require_regular
from twostage.data.rotated import around

LARGEST_FILE = 64 << 20  # bytes; a hundred thousand objects fit


# What is read, or says where the file was; other elements are kept.
_FILE = ("filename", "size", "object", "folder", "path", "segmented")
_OBJECT = ("name", "bndbox", "difficult")
# What tools write without being asked.
_DEFAULTS = {
    "pose": ("Unspecified", "unspecified", ""),
    "truncated": (0, ""),
    "occluded": (0, ""),
    "source": ({"database": "Unknown"}, {"database": "unknown"}, ""),
}
_DEEPEST = 50
_TAG = re.compile(r"[A-Za-z_][\w.-]*")
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")


class VocObject(NamedTuple):
    """An object as in the XML, `number` counted from 1, with its other `fields` (`data.fields`)."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    number: int
    fields: str = ""
    rotated: bool = False


class VocFile(NamedTuple):
    """One XML file: `filename`, the stated (height, width), 0 where there is none, objects, faults, other fields."""

    filename: str
    stated: tuple[int, int]
    objects: tuple[VocObject, ...]
    faults: tuple[Fault, ...]
    broken: bool
    fields: str = ""


def read_xml(path: Path, root: Path) -> VocFile:
    """The content of one XML file, with its faults."""
    name = display_path(path, root)
    try:
        tree = parse_xml(path)
        if tree.tag != "annotation":
            raise ValueError(f"its outermost element is <{tree.tag}>, not <annotation>")
        fields = _fields(tree, _FILE)
    except (OSError, ValueError, LookupError, ExpatError) as error:
        fix = foreign.advice(path).removeprefix("is ") if path.is_file() else ""
        fix = fix or "Write the annotation again, or remove it together with its image"
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
    size = stated[0], stated[1]
    return VocFile(filename, size, tuple(objects), tuple(faults), broken=False, fields=fields)


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
    turned = element.find("robndbox")  # roLabelImg's: centre, sides and an angle in radians
    degrees = 0.0
    if box is not None:
        corners = _numbers(box, ("xmin", "ymin", "xmax", "ymax"), name)
        degrees = _rotation(element)
    elif turned is not None:
        cx, cy, width, height = _numbers(turned, ("cx", "cy", "w", "h"), name)
        corners = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
        degrees = math.degrees(float(turned.findtext("angle") or 0))
    else:
        raise ValueError(f"the object {name!r} has no bndbox")
    difficult = (element.findtext("difficult") or "0").strip() in ("1", "true", "True")
    if degrees:
        corners = around(corners, degrees)
    return VocObject(name, corners, difficult, number, _fields(element, _OBJECT), bool(degrees) or box is None)


def _numbers(element: Element, tags: tuple[str, str, str, str], name: str) -> tuple[float, float, float, float]:
    """Four numbers below an element of an object. Raises ValueError."""
    numbers = []
    for tag in tags:
        text = element.findtext(tag)
        try:
            numbers.append(float(text or ""))
        except ValueError:
            raise ValueError(f"{tag} of {name!r} is {text!r}, not a number") from None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _rotation(element: Element) -> float:
    """The angle that CVAT writes beside the box as it was before it was turned; 0 for none.

    The attribute is renamed in the tree, or the box would be turned again once written.
    """
    for attribute in element.iterfind("attributes/attribute"):
        name = attribute.find("name")
        if name is not None and name.text == "rotation":
            try:
                degrees = float(attribute.findtext("value") or "")
            except ValueError:
                return 0.0
            if math.isfinite(degrees) and degrees:
                name.text = "rotated_by"
                return degrees
    return 0.0


def _fields(element: Element, known: Collection[str]) -> str:
    """The elements that are not `known`, and differ from what tools write without being asked."""
    others = _content(element, known)
    if isinstance(others, str):
        return ""
    return pack(renamed({k: v for k, v in others.items() if v not in _DEFAULTS.get(k, ())}, "voc"))


def _content(element: Element, known: Collection[str] = (), depth: int = 0) -> Any:
    """An element as JSON has it: its text, a whole number, or an object with a list for a repeated element.

    Of elements that are nested deeper than any format has them the text alone is kept.
    """
    if depth > _DEEPEST:
        return element.text or ""
    content: dict[str, Any] = {f"@{name}": value for name, value in element.attrib.items()}
    for child in element:
        if child.tag in known:
            continue
        value = _content(child, depth=depth + 1)
        if child.tag not in content:
            content[child.tag] = value
        elif isinstance(content[child.tag], list):
            content[child.tag].append(value)
        else:
            content[child.tag] = [content[child.tag], value]
    text = (element.text or "").strip()
    if content and text:
        content["#text"] = text
    if content or len(element):
        return content
    text = (element.text or "").strip()
    return int(text) if len(text) < 16 and text.isascii() and text.isdigit() and str(int(text)) == text else text


def _whole(text: str | None) -> int:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def write_xml(dataset: Dataset, index: int, name: str) -> str:
    """The annotation of an image: pixels counted from 1, with fractions if the boxes have them."""
    height, width = dataset.sizes[index].tolist()
    objects = dataset.objects(index)
    others = dataset.fields
    first = int(dataset.offsets[index])
    written = []
    columns = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.difficult.tolist(), strict=True)
    for row, ((x1, y1, x2, y2), label, difficult) in enumerate(columns, start=first):
        sides = [int(v) if v == int(v) else v for v in (x1 + 1, y1 + 1, x2, y2)]
        fields = unpack(others.objects[row]) if others else {}
        written.append((dataset.names[label], int(difficult), sides, fields))
    return annotation(name, (height, width), written, unpack(others.images[index]) if others else {})


def annotation(
    filename: str,
    size: tuple[int, int],
    objects: Iterable[tuple[str, int, Sequence[float], Mapping[str, Any]]],
    fields: Mapping[str, Any],
) -> str:
    """The text of an annotation file: of each object its name, whether it is difficult, its sides as written, others.

    Of other fields those are written that XML has a form for: text, whole numbers, and objects and lists of them.
    """
    height, width = size
    root = ElementTree.Element("annotation")
    _children(root, {"filename": filename})
    _children(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    _children(root, {"segmented": 0, **_without(fields, _FILE)})
    for name, difficult, (xmin, ymin, xmax, ymax), others in objects:
        node = ElementTree.SubElement(root, "object")
        more = {"pose": "Unspecified", "truncated": 0, **_without(others, _OBJECT)}
        _children(node, {"name": name, "difficult": difficult, **more})
        _children(ElementTree.SubElement(node, "bndbox"), {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _without(fields: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    return {tag: value for tag, value in fields.items() if tag not in known}


def _children(node: Element, values: Mapping[str, Any]) -> None:
    """Adds an element for each value that XML has a form for."""
    for tag, value in values.items():
        if tag.startswith("@") and isinstance(value, str) and _TAG.fullmatch(tag[1:]) and not _UNWRITABLE.search(value):
            node.set(tag[1:], value)
        if tag == "#text" and isinstance(value, str) and not _UNWRITABLE.search(value):
            node.text = value
        if not _TAG.fullmatch(tag):
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                _children(ElementTree.SubElement(node, tag), one)
            elif isinstance(one, str | int | float) and not _UNWRITABLE.search(str(one)):
                ElementTree.SubElement(node, tag).text = str(one)
