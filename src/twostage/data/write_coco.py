"""A data set in COCO's layout: annotations/instances_<split>.json, pictures in <split>/."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.data.flat import NONE
from twostage.data.segmentation import write_segmentation


def picture_folder(root: Path, split: str) -> Path:
    """Where the pictures of a split are."""
    return root / split


def write_coco(root: Path, datasets: Sequence[Dataset], names: Sequence[Sequence[str]]) -> list[list[Path]]:
    """Write the annotations of splits whose pictures are called `names`; the file of each image."""
    places = []
    for dataset, of_split in zip(datasets, names, strict=True):
        path = root / "annotations" / f"instances_{dataset.split}.json"
        write_text(path, json.dumps(coco_document(dataset, of_split)))
        places.append([path] * len(dataset))
    return places


def coco_document(dataset: Dataset, names: Sequence[str]) -> dict[str, Any]:
    """A split as COCO's JSON has it."""
    categories = dataset.category_ids.tolist()
    return {
        "images": [
            {"id": int(number), "file_name": name, "height": int(height), "width": int(width)}
            for number, name, (height, width) in zip(dataset.image_ids, names, dataset.sizes, strict=True)
        ],
        "annotations": list(_annotations(dataset, categories)),
        "categories": [{"id": number, "name": name} for number, name in zip(categories, dataset.names, strict=True)],
    }


def _annotations(dataset: Dataset, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    for row in range(len(dataset.labels)):
        x1, y1, x2, y2 = dataset.boxes[row].tolist()
        entry = {
            "id": int(dataset.annotation_ids[row]),
            "image_id": int(dataset.image_ids[image[row]]),
            "category_id": categories[dataset.labels[row]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": float(dataset.areas[row]),
            "iscrowd": int(dataset.crowd[row]),
        }
        if dataset.difficult[row]:
            entry["difficult"] = 1
        if dataset.masks is not None and dataset.masks.kinds[row] != NONE:  # pycocotools reads no null
            height, width = dataset.sizes[image[row]].tolist()
            entry["segmentation"] = write_segmentation(dataset.masks[row], height, width)
        yield entry
