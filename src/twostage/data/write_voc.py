"""A data set in PASCAL VOC's layout: JPEGImages, Annotations, lists of splits in ImageSets/Main and Segmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.data.duplicates import VOC_MASKED


def picture_folder(root: Path, split: str) -> Path:
    """Where the pictures are: in one folder for all splits."""
    return root / "JPEGImages"


def write_voc(root: Path, datasets: Sequence[Dataset], names: Sequence[Sequence[str]]) -> list[list[Path]]:
    """Write the annotations of splits whose pictures are called `names`; the file of each image."""
    places = []
    for dataset, of_split in zip(datasets, names, strict=True):
        stems = [Path(name).stem for name in of_split]
        split = dataset.split.removeprefix(VOC_MASKED)
        lists = root / "ImageSets" / ("Main" if split == dataset.split else "Segmentation")
        write_text(lists / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
        places.append([root / "Annotations" / f"{stem}.xml" for stem in stems])
        for index, (path, name) in enumerate(zip(places[-1], of_split, strict=True)):
            write_text(path, voc_xml(dataset, index, name))
    return places


def voc_xml(dataset: Dataset, index: int, name: str) -> str:
    """The annotation of an image: pixels counted from 1, fractions of them where the boxes have some."""
    height, width = dataset.sizes[index].tolist()
    root = ElementTree.Element("annotation")
    _children(root, filename=name)
    _children(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _children(root, segmented=0)
    objects = dataset.objects(index)
    columns = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.difficult.tolist(), strict=True)
    for (x1, y1, x2, y2), label, difficult in columns:
        node = ElementTree.SubElement(root, "object")
        _children(node, name=dataset.names[label], pose="Unspecified", truncated=0, difficult=int(difficult))
        sides = (x1 + 1, y1 + 1, x2, y2)
        xmin, ymin, xmax, ymax = (int(v) if v == int(v) else v for v in sides)
        _children(ElementTree.SubElement(node, "bndbox"), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _children(node: ElementTree.Element, **values: Any) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(node, tag).text = str(value)
