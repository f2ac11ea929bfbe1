"""A data set in YOLO's layout: data.yaml, images/<split>/, labels/<split>/ with a text file a picture."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.data.flat import POLYGONS, unpack_polygons
from twostage.data.yolo import SPLIT_KEYS
from twostage.errors import UsageError


def picture_folder(root: Path, split: str) -> Path:
    """Where the pictures of a split are."""
    return root / "images" / split


def write_yolo(root: Path, datasets: Sequence[Dataset], names: Sequence[Sequence[str]]) -> list[list[Path]]:
    """Write the annotations of splits whose pictures are called `names`; the file of each image.

    Raises UsageError for a split that YOLO has no key for.
    """
    for dataset in datasets:
        if dataset.split not in SPLIT_KEYS:
            raise UsageError(f"data.yaml has no key for the split {dataset.split!r}; it has {', '.join(SPLIT_KEYS)}.")
    splits = {dataset.split: f"images/{dataset.split}" for dataset in datasets}
    document = {"names": dict(enumerate(datasets[0].names)), "nc": len(datasets[0].names), **splits}
    write_text(root / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    places = []
    for dataset, of_split in zip(datasets, names, strict=True):
        places.append([(root / "labels" / dataset.split / name).with_suffix(".txt") for name in of_split])
        outlines = _outlines(dataset)
        for index, path in enumerate(places[-1]):
            write_text(path, "".join(f"{row}\n" for row in _rows(dataset, index, outlines)))
    return places


def _outlines(dataset: Dataset) -> Sequence[Sequence[float]] | None:
    """The polygon of every object where all have exactly one: a file holds polygons or boxes, not both."""
    masks = dataset.masks
    if masks is None or not len(masks) or any(masks[row].kind != POLYGONS for row in range(len(masks))):
        return None
    rings = [unpack_polygons(masks[row].data) for row in range(len(masks))]
    return None if any(len(of_one) != 1 for of_one in rings) else [of_one[0].tolist() for of_one in rings]


def _rows(dataset: Dataset, index: int, outlines: Sequence[Sequence[float]] | None) -> list[str]:
    height, width = dataset.sizes[index].tolist()
    start, end = dataset.offsets[index : index + 2].tolist()
    rows = []
    for row in range(start, end):
        if outlines is None:
            x1, y1, x2, y2 = dataset.boxes[row].tolist()
            numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        else:
            numbers = [v / (height if i % 2 else width) for i, v in enumerate(outlines[row])]
        rows.append(" ".join([str(int(dataset.labels[row])), *map(str, numbers)]))
    return rows
