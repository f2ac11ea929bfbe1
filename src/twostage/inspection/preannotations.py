"""Suggestions as pre-annotations that labelling tools import.

CVAT: "CVAT for images 1.1" (docs.cvat.ai, XML annotation format); boxes are absolute corners, `xtl ytl xbr ybr`. An
upload replaces what a task holds, so the file has all labels as well. Label Studio: tasks in JSON with `annotations`
(the labels) and `predictions` (the suggestions); boxes are percentages of the image (labelstud.io/guide/predictions).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from twostage.data.dataset import Dataset
from twostage.inspection.suggestion import Suggestion

LOCAL_FILES = "/data/local-files/?d="  # what Label Studio's local storage begins the addresses of images with
_ATTRIBUTES = ("audit", "why")  # of a box in CVAT


def cvat_xml(dataset: Dataset, suggestions: Sequence[Suggestion], name: str) -> str:
    """An XML of all labels and the suggested boxes.

    A label in doubt has the attributes `audit` (the kind) and `why`; so has a suggested box, which lies above
    (`z_order` 1) with the source `auto`.
    """
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    for key, value in (("name", name), ("size", str(len(dataset))), ("mode", "annotation"), ("overlap", "0")):
        ET.SubElement(task, key).text = _clean(value)
    labels = ET.SubElement(task, "labels")
    for each in dataset.names:
        _label_specification(ET.SubElement(labels, "label"), each)
    by_image, by_row = _by_image(suggestions), {one.row: one for one in suggestions if one.row is not None}
    for index in range(len(dataset)):
        height, width = dataset.sizes[index].tolist()
        head = {"id": str(index), "name": _clean(dataset.file_name(index)), "width": str(width), "height": str(height)}
        image = ET.SubElement(root, "image", head)
        for row in range(*dataset.offsets[index : index + 2].tolist()):
            doubt = by_row.get(row)
            _box(image, dataset.names[int(dataset.labels[row])], dataset.boxes[row].tolist(), doubt, suggested=False)
        for one in by_image.get(index, ()):
            if one.box is not None and one.label is not None:
                _box(image, dataset.names[one.label], one.box, one, suggested=True)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def label_studio(
    dataset: Dataset, suggestions: Sequence[Suggestion], *, prefix: str = LOCAL_FILES
) -> list[dict[str, Any]]:
    """One task for each image with suggestions, those with the best one first.

    `data.image` is `prefix` and the image's name. The names of the tags are those of Label Studio's own template for
    boxes: `<RectangleLabels name="label" toName="image">`, `<Image name="image" value="$image">`.
    """
    tasks = []
    for index, some in sorted(_by_image(suggestions).items(), key=lambda item: -max(one.value for one in item[1])):
        size = (int(dataset.sizes[index, 0]), int(dataset.sizes[index, 1]))
        rows = range(*dataset.offsets[index : index + 2].tolist())
        labels = [
            _region(f"label-{row}", dataset.names[int(dataset.labels[row])], dataset.boxes[row].tolist(), size)
            for row in rows
        ]
        regions = [
            _region(f"audit-{number}", dataset.names[one.label], one.box, size)
            | {"score": round(one.value, 4), "meta": {"text": [f"{one.kind}: {one.why}"]}}
            for number, one in enumerate(some)
            if one.box is not None and one.label is not None
        ]
        removed = [
            _region(
                f"audit-{number}", dataset.names[int(dataset.labels[one.row])], dataset.boxes[one.row].tolist(), size
            )
            | {"score": round(one.value, 4), "meta": {"text": [f"{one.kind}, perhaps to be removed: {one.why}"]}}
            for number, one in enumerate(some)
            if one.box is None and one.row is not None
        ]
        name = dataset.file_name(index)
        tasks.append(
            {
                "data": {"image": prefix + (quote(name, errors="surrogateescape") if prefix else name), "file": name},
                "annotations": [{"result": labels}],
                "predictions": [
                    {
                        "model_version": "twostage data audit",
                        "score": round(max(one.value for one in some), 4),
                        "result": regions + removed,
                    }
                ],
            }
        )
    return tasks


def _by_image(suggestions: Sequence[Suggestion]) -> Mapping[int, list[Suggestion]]:
    grouped: dict[int, list[Suggestion]] = defaultdict(list)
    for one in suggestions:
        grouped[one.image].append(one)
    return grouped


def _label_specification(label: ET.Element, name: str) -> None:
    """A label of the task with the attributes that its boxes may have; CVAT drops others."""
    ET.SubElement(label, "name").text = _clean(name)
    ET.SubElement(label, "type").text = "rectangle"
    attributes = ET.SubElement(label, "attributes")
    for each in _ATTRIBUTES:
        attribute = ET.SubElement(attributes, "attribute")
        for key, value in (("name", each), ("mutable", "False"), ("input_type", "text"), ("default_value", "")):
            ET.SubElement(attribute, key).text = value
        ET.SubElement(attribute, "values").text = ""


def _box(image: ET.Element, label: str, box: Sequence[float], doubt: Suggestion | None, *, suggested: bool) -> None:
    corners = {key: f"{side:.2f}" for key, side in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)}
    source, order = ("auto", "1") if suggested else ("manual", "0")
    head = {"label": _clean(label), "source": source, "occluded": "0", **corners, "z_order": order}
    element = ET.SubElement(image, "box", head)
    if doubt is not None:
        for name, value in zip(_ATTRIBUTES, (str(doubt.kind), doubt.why), strict=True):
            ET.SubElement(element, "attribute", {"name": name}).text = _clean(value)


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold; the others are escaped when it is written."""
    return "".join(
        c if c in "\t\n\r" or 0x20 <= ord(c) <= 0xD7FF or 0xE000 <= ord(c) <= 0xFFFD or ord(c) > 0xFFFF else "?"
        for c in text
    )


def _region(name: str, label: str, box: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """A box as a region of Label Studio: the corner and the sides in percent of the image (height, width)."""
    height, width = size
    x1, y1, x2, y2 = (float(side) for side in box)
    value = {
        "x": 100 * x1 / width,
        "y": 100 * y1 / height,
        "width": 100 * (x2 - x1) / width,
        "height": 100 * (y2 - y1) / height,
        "rotation": 0,
        "rectanglelabels": [label],
    }
    return {
        "id": name,
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
    }
