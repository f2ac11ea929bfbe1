"""Writes COCO's JSON: all that a `Dataset` has, with the fields that were kept."""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.data.fields import unpack
from twostage.data.flat import NONE
from twostage.data.layout import Names
from twostage.data.segmentation import write_segmentation


def write(root: Path, datasets: Sequence[Dataset], names: Names) -> list[list[Path]]:
    """Write annotations/instances_<split>.json for splits whose images have these names; the file of each image."""
    places = []
    for dataset, of_split in zip(datasets, names, strict=True):
        path = root / "annotations" / f"instances_{dataset.split}.json"
        write_text(path, json.dumps(_document(dataset, of_split)))
        places.append([path] * len(dataset))
    return places


def _document(dataset: Dataset, names: Sequence[str]) -> dict[str, Any]:
    """A split as COCO's JSON."""
    categories = dataset.category_ids.tolist()
    fields = dataset.fields
    document = {
        **unpack(fields.common if fields else ""),
        "images": [
            {"id": int(number), "file_name": name, "height": int(height), "width": int(width)}
            for number, name, (height, width) in zip(dataset.image_ids, names, dataset.sizes, strict=True)
        ],
        "annotations": list(_written_annotations(dataset, categories)),
        "categories": [{"id": number, "name": name} for number, name in zip(categories, dataset.names, strict=True)],
    }
    if fields:
        for key, others in (("images", fields.images), ("annotations", fields.objects), ("categories", fields.classes)):
            document[key] = [record | unpack(others[i]) for i, record in enumerate(document[key])]
    return document


def _written_annotations(dataset: Dataset, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    image = dataset.image_indices
    for row in range(len(dataset.labels)):
        # The shortest decimals of float32: 1000.3 is not written as 1000.2999877929688.
        x1, y1, x2, y2 = (Decimal(str(corner)) for corner in dataset.boxes[row])
        entry = {
            "id": int(dataset.annotation_ids[row]),
            "image_id": int(dataset.image_ids[image[row]]),
            "category_id": categories[dataset.labels[row]],
            "bbox": [float(number) for number in (x1, y1, x2 - x1, y2 - y1)],
            "area": float(dataset.areas[row]),
            "iscrowd": int(dataset.crowd[row]),
        }
        if dataset.difficult[row]:
            entry["difficult"] = 1
        if dataset.masks is not None and dataset.masks.kinds[row] != NONE:  # pycocotools does not accept null
            height, width = dataset.sizes[image[row]].tolist()
            entry["segmentation"] = write_segmentation(dataset.masks[row], height, width)
        yield entry
