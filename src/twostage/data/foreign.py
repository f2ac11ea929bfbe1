"""Files of tools that are not read here: what they are, and how to export them so that they can be read.

They are recognised by their names and their first bytes. Several look like COCO's files to a reader of JSON.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from twostage.data.files import subfolders

_HEAD = 1 << 14  # bytes that are looked at
_OURS = r'"(images|_via_img_metadata|shape_attributes|imagePath)"\s*:'  # keys of COCO, VIA and labelme
_SOME = 20  # files of a folder that are looked at
_TABLE = "Or read it in Python as `Dataset.from_samples`: docs/own-data.md shows how."


class _Tool(NamedTuple):
    """A pattern of a file's whole name, patterns that its beginning contains, all of them, and what to do."""

    names: str
    contents: tuple[str, ...]
    advice: str


_LIST = r"\A\s*\[\s*\{"  # a JSON list of objects
_LABEL_STUDIO = "There choose Export, and COCO, YOLO with images or Pascal VOC XML."
_VOTT = "is VoTT's JSON. In VoTT's export settings choose Pascal VOC."
_FIFTYONE = "is FiftyOne's own form. Use dataset.export(dataset_type=fo.types.COCODetectionDataset, label_field=...)."
_DATUMARO = "is Datumaro's JSON. Export as COCO 1.0, or use `datum convert -f coco_instances`."
_TOOLS = (
    _Tool(
        r".*\.xml",
        (r"<annotations>\s*<version>1\.\d</version>",),
        "is CVAT's own XML (CVAT for images). In CVAT choose Export task dataset, and there COCO 1.0, Pascal VOC 1.1 "
        "or YOLO 1.1.",
    ),
    _Tool(
        r".*\.json",
        (_LIST, r'"data"\s*:', r'"(annotations|completions|predictions)"\s*:\s*\['),
        f"are tasks of Label Studio. {_LABEL_STUDIO}",
    ),
    _Tool(
        r".*\.json",
        (_LIST, r'"(rectanglelabels|polygonlabels|brushlabels|original_width)"'),
        f"is Label Studio's JSON-MIN. {_LABEL_STUDIO}",
    ),
    _Tool(
        r".*\.json",
        (_LIST, r'"image(_filename)?"\s*:', r'"coordinates"\s*:'),
        "is CreateML's JSON. In LabelImg or Roboflow choose Pascal VOC, or COCO.",
    ),
    _Tool(
        r".*\.json",
        (r'"classTitle"\s*:', r'"exterior"\s*:'),
        "is Supervisely's JSON. There run the app Export to COCO, or Export to YOLO.",
    ),
    _Tool(r".*\.(json|vott)", (r'"(visitedAssets|lastVisitedAssetId|videoSettings)"',), _VOTT),
    _Tool(r".*\.(json|vott)", (r'"assets"\s*:', r'"tags"\s*:'), _VOTT),
    _Tool(
        r".*\.(json|manifest|jsonl)",
        (r'\A\s*\{[^\n]*"source-ref"\s*:',),
        f"is a manifest of SageMaker Ground Truth. {_TABLE}",
    ),
    _Tool(
        r".*\.jsonl",
        (r'\A\s*\{[^\n]*"image_url"\s*:',),
        "is Azure's JSON Lines. In Azure Machine Learning export the labels as COCO; its boxes are fractions, which "
        "--boxes xywh-fractions reads.",
    ),
    _Tool(r".*\.json", (r'"regions"\s*:', r'"tagName"\s*:'), f"are regions of Azure Custom Vision. {_TABLE}"),
    _Tool(r".*\.json", (r'"_media_type"',), _FIFTYONE),
    _Tool(r".*\.json", (r'"sample_fields"\s*:',), _FIFTYONE),
    _Tool(r".*\.json", (r'"_cls"\s*:\s*"(Detections?|Classification)"',), _FIFTYONE),
    _Tool(r".*\.json", (r'"media_type"\s*:', r'"items"\s*:'), _DATUMARO),
    _Tool(r".*\.json", (r'"categories"\s*:\s*\{\s*"label"\s*:',), _DATUMARO),
    _Tool(
        r".*\.json",
        (r'"project"\s*:', r'"vid_list"\s*:'),
        "is a project of VIA 3. Annotate with VIA 2, or export it there as COCO.",
    ),
    _Tool(
        r".*\.csv",
        (r"\A[^\n]*\b(filename|image|ImageID|path|file)\b", r"\A[^\n]*\b(xmin|x1|XMin|bbox)\b"),
        f"is a table of boxes. In Roboflow or VoTT choose COCO or Pascal VOC. {_TABLE}",
    ),
    _Tool(
        r".*\.(tfrecords?|record)(-\d+-of-\d+)?",
        (),
        "is a TFRecord. Export the data set as COCO where it was made.",
    ),
)


def advice(path: Path) -> str:
    """What a file, or one in a folder or in its folders, is and how to export it; "" if it is none of these."""
    if path.is_file():
        return _of_file(path)
    for one in islice(filter(_may_be, _files(path)), _SOME):
        found = _of_file(one)
        if found:
            return f"{one.relative_to(path)} {found}"
    return ""


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder, then those of some of its folders, and of some in them."""
    yield from sorted(folder.iterdir())
    for sub in subfolders(folder):
        for one in (sub, *islice(subfolders(sub), 3)):
            yield from islice(filter(_may_be, sorted(one.iterdir())), 2)


def _may_be(path: Path) -> bool:
    return any(re.fullmatch(tool.names, path.name, re.IGNORECASE) for tool in _TOOLS) and path.is_file()


def _of_file(path: Path) -> str:
    tools = [tool for tool in _TOOLS if re.fullmatch(tool.names, path.name, re.IGNORECASE)]
    if not tools:
        return ""
    with path.open("rb") as file:
        text = file.read(_HEAD).decode("utf-8-sig", errors="replace")
    if re.search(_OURS, text):
        return ""
    return next((tool.advice for tool in tools if all(re.search(content, text) for content in tool.contents)), "")
