"""The detections of a whole split as flat arrays, and the file formats to exchange them.

Letters: n detections over all images, M images, K classes.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from twostage.data.dataset import Dataset
from twostage.data.flat import to_rle
from twostage.data.notation import Notation, suspicion
from twostage.data.segmentation import SegmentationError, read_run_lengths, read_segmentation
from twostage.errors import DataError, brief
from twostage.ops.masks import bounding_box


@dataclass(frozen=True, eq=False)
class Results:
    """n detections in any order; among equal scores the earlier row comes first, as in COCO's tools.

    `images` index the data set, `boxes` are xyxy pixels, `class_ids` are 0..K-1, `masks` COCO RLEs of the whole image.
    Float64, so that scores and boxes are exactly those of a file.
    """

    images: Int64[np.ndarray, " n"]
    boxes: Float64[np.ndarray, "n 4"]
    scores: Float64[np.ndarray, " n"]
    class_ids: Int64[np.ndarray, " n"]
    masks: list[dict] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_coco(cls, path: str | Path, dataset: Dataset) -> "Results":
        """Reads a COCO results file: a list of {"image_id", "category_id", "bbox": [x, y, w, h], "score"}.

        A "file_name" or "category_name" in an entry, as `predict` writes them, has priority over the ids, which may be
        those of another data set. An "image_id" may be the image's file name without suffix, as Ultralytics writes it,
        or a number as text. With "segmentation" in every entry, run lengths or polygons, there are masks; missing boxes
        are then computed from them. Raises DataError with the first entry that is not a detection, or of no image or
        class of the data set, and where all boxes show another notation than x, y, width, height.
        """
        entries = _load_entries(Path(path))
        _number_text_ids(entries, dataset, path)
        images, classes = _index(dataset.image_ids), _index(dataset.category_ids)
        ids_of = _ids_by_name(dataset)
        boxes, masks = [], []
        for number, entry in enumerate(entries):
            fault = ids_of(entry) or _fault_of(entry, images, classes)
            if fault is not None:
                raise DataError(f"{path}: entry {number} (counted from 0): {fault}")
            if entry.get("segmentation"):
                size = dataset.sizes[images[entry["image_id"]]].tolist()
                masks.append(_rle(entry["segmentation"], size, f"{path}: entry {number} (counted from 0)"))
            boxes.append(entry["bbox"] if entry.get("bbox") else bounding_box(masks[-1]))
        if masks and len(masks) != len(entries):
            raise DataError(f"{path}: {len(masks)} of {len(entries)} entries have a segmentation. Give all or none.")
        xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        image_of = np.array([images[e["image_id"]] for e in entries], dtype=np.int64)
        _require_notation(xywh, dataset.sizes[image_of], path)
        return cls(
            images=image_of,
            boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            scores=np.array([e["score"] for e in entries], dtype=np.float64),
            class_ids=np.array([classes[e["category_id"]] for e in entries], dtype=np.int64),
            masks=masks or None,
        )

    @classmethod
    def from_voc(cls, folder: str | Path, dataset: Dataset) -> "Results":
        """Reads the VOC devkit's results: a folder with one `comp4_det_<split>_<class>.txt` for each class.

        A line holds the image's name without suffix, the score, and xmin, ymin, xmax, ymax counted from 1, the last
        pixel included. Classes without a file have no detections. Raises DataError naming file and line.
        """
        stems = {Path(dataset.file_name(i)).stem: i for i in range(len(dataset))}
        if len(stems) < len(dataset):
            raise DataError(f"{dataset.root}: images differ only by folder or suffix. Give COCO results instead.")
        gathered = Accumulator()
        files = sorted(Path(folder).glob("*_det_*.txt"))
        classes = [(k, f) for f in files if (k := _class_of(f.name, dataset.names)) is not None]
        known = [(f, k) for k, f in sorted(classes)]
        if not known:
            raise DataError(
                f"{folder}: no file comp4_det_<split>_<class>.txt for any class of the data set. The XML files of "
                "`predict --format voc` hold no scores: give the results.json or coco.json beside them."
            )
        for path, class_id in known:
            # Names of files need not be text, and so may lines that begin with one.
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            for number, line in enumerate(text.splitlines(), start=1):
                if not line.strip():
                    continue
                name, score, box = _voc_line(line, f"{path}: line {number}")
                if name not in stems:
                    raise DataError(f"{path}: line {number}: no image {name!r} in the split {dataset.split!r}.")
                gathered.add(stems[name], np.array([box]) - [1, 1, 0, 0], np.array([score]), np.array([class_id]))
        return gathered.results()

    def to_coco(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Entries of a COCO results file, not rounded, so that other tools compute the same metrics from them.

        Detections of a class that the data set's files do not have are left out: there is no id for it, and no AP.
        """
        xywh = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        columns = (dataset.image_ids[self.images], dataset.category_ids[self.class_ids], xywh, self.scores)
        known = np.flatnonzero(columns[1] >= 0)
        keys = ("image_id", "category_id", "bbox", "score")
        rows = [dict(zip(keys, row, strict=True)) for row in zip(*(c[known].tolist() for c in columns), strict=True)]
        masks = self.masks and [self.masks[number] for number in known.tolist()]
        for row, rle in zip(rows, masks or [], strict=False):
            counts = rle["counts"]
            row["segmentation"] = {**rle, "counts": counts.decode() if isinstance(counts, bytes) else counts}
        return rows


class Accumulator:
    """Collects detections image by image, in any order of images."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, Sequence[dict] | None]] = []

    def add(
        self,
        image: int,
        boxes: Float[np.ndarray, "n 4"],
        scores: Float[np.ndarray, " n"],
        class_ids: Int[np.ndarray, " n"],
        masks: Sequence[dict] | None = None,
    ) -> None:
        """Add the detections of the image with this index in the data set."""
        self._parts.append((image, boxes, scores, class_ids, masks))

    @classmethod
    def join(cls, shares: "Iterable[Accumulator]") -> "Accumulator":
        """The contents of several accumulators, in the order of the images."""
        whole = cls()
        whole._parts = sorted((part for share in shares for part in share._parts), key=itemgetter(0))
        return whole

    def results(self) -> Results:
        """All that was added, in the order of adding."""
        images, boxes, scores, class_ids, masks = zip(*self._parts, strict=True) if self._parts else ((),) * 5
        given = [rles for rles in masks if rles is not None]
        return Results(
            images=np.repeat(np.array(images, np.int64), np.array([len(some) for some in scores], np.int64)),
            boxes=np.concatenate([np.zeros((0, 4)), *boxes]),
            scores=np.concatenate([np.zeros(0), *scores]),
            class_ids=np.concatenate([np.zeros(0, np.int64), *class_ids]),
            masks=[rle for rles in given for rle in rles] if given else None,
        )


def _load_entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON ({error}). A results file is a list of detections.") from error
    if isinstance(entries, list):
        return entries
    keys = ", ".join(map(repr, entries)) if isinstance(entries, dict) else type(entries).__name__
    mend = "Name a COCO results file: a list of detections, as `predict --format coco` writes."
    raise DataError(f"{path}: is no list of detections; it holds {keys[:80]}. {mend}")


def _index(ids: Int64[np.ndarray, " k"]) -> dict[int, int]:
    return {number: i for i, number in enumerate(ids.tolist())}


def _ids_by_name(dataset: Dataset) -> Callable[[Any], str | None]:
    """A function that sets the ids of an entry from its names, and returns an error message if they are unknown."""
    images = {dataset.file_name(i): i for i in range(len(dataset))}
    categories = dict(zip(dataset.names, dataset.category_ids.tolist(), strict=True))

    @cache
    def image_of(name: str) -> int | None:
        """The image whose name is the end of the path, unless the path is that of another image of the data set."""
        parts = Path(name).parts
        known = [images[k] for i in range(len(parts)) if (k := "/".join(parts[i:])) in images]
        path = Path(name).resolve()
        own = path.is_relative_to(dataset.root.resolve()) and path.exists()
        return known[0] if known and (not own or path == dataset.path(known[0]).resolve()) else None

    def set_ids(entry: Any) -> str | None:
        """Set `image_id` and `category_id` of an entry from its names; returns an error message for unknown names."""
        if type(entry) is not dict:
            return None
        if isinstance(name := entry.get("file_name"), str):
            image = image_of(name)
            if image is None:
                return (
                    f"file_name {brief(name)} is none of the data set's {len(images)} images. Is it of another split?"
                )
            entry["image_id"] = int(dataset.image_ids[image])
        if isinstance(label := entry.get("category_name"), str):
            if label not in categories:
                return f"category_name {brief(label)} is none of the data set's: {brief(list(categories))}."
            entry["category_id"] = categories[label]
        return None

    return set_ids


def _number_text_ids(entries: list[Any], dataset: Dataset, path: str | Path) -> None:
    """Replace image ids that are text in all entries, by file names without suffix or by numbers."""
    given = [entry.get("image_id") for entry in entries if type(entry) is dict and "file_name" not in entry]
    ids = {one for one in given if isinstance(one, str)}
    if not ids or not all(isinstance(one, str) for one in given):
        return
    stems = Counter(Path(dataset.file_name(i)).stem for i in range(len(dataset)))
    by_stem = {
        Path(name).stem: int(number)
        for number, name in zip(dataset.image_ids, map(dataset.file_name, range(len(dataset))), strict=True)
    }
    by_number = {str(number): number for number in dataset.image_ids.tolist()}
    ways = [way for way in (by_stem, by_number) if ids <= way.keys()]
    if not ways:
        return  # the first of them is reported
    twice = [one for one in ids if ways[0] is by_stem and stems[one] > 1]
    differ = [one for one in ids if len({way[one] for way in ways}) > 1]
    if twice or differ:
        which = sorted(twice or differ)[0]
        raise DataError(f'{path}: the image_id {which!r} fits several images. Add a "file_name" to every entry.')
    for entry in entries:
        if type(entry) is dict and "file_name" not in entry:
            entry["image_id"] = ways[0][entry["image_id"]]


def _require_notation(xywh: Float64[np.ndarray, "n 4"], sizes: np.ndarray, path: str | Path) -> None:
    """Raises DataError where the boxes are corners or parts of the image, which COCO tools score as other boxes."""
    other = suspicion(xywh, sizes, Notation("xywh"))
    if other is not None and (other.notation.order == "xyxy" or other.notation.unit != "pixels"):
        shown = "; ".join(f"entry {n}: {brief(xywh[n].tolist())}" for n in other.examples.tolist())
        raise DataError(
            f"{path}: its {len(xywh)} boxes look like {other.notation.words}, not x, y, width, height in pixels "
            f"({shown}). Write COCO's boxes."
        )


def _fault_of(entry: Any, images: dict[int, int], classes: dict[int, int]) -> str | None:
    """What is wrong with an entry of a results file and how to fix it; None if it is valid."""
    if type(entry) is not dict:
        return f"{brief(entry)} is no object. Write an object for each detection."
    image, category, score, box = (entry.get(k) for k in ("image_id", "category_id", "score", "bbox"))
    if type(image) is not int or image not in images:
        return f"image_id {brief(image)} is none of the data set's {len(images)} images. Is it of another split?"
    if type(category) is not int or category not in classes:
        return f"category_id {brief(category)} is none of the data set's: {brief(list(classes))}."
    if not _is_number(score):
        return f"score {brief(score)} is no finite number."
    if not box and entry.get("segmentation"):
        return None
    if type(box) is not list or len(box) != 4 or not all(map(_is_number, box)):
        return f"bbox {brief(box)} is not four finite numbers x, y, width, height."
    if box[2] < 0 or box[3] < 0:
        return f"bbox {brief(box)} has a negative side. COCO boxes are x, y, width, height, not two corners."
    return None


def _is_number(value: Any) -> bool:
    # The comparison is False for NaN and for both infinities.
    return type(value) in (int, float) and abs(value) < 1e15


def _rle(segmentation: Any, size: list[int], where: str) -> dict:
    """COCO's compressed run lengths, {"size", "counts": bytes}, from compressed or plain counts, or polygons."""
    try:
        if isinstance(segmentation, list):
            return {**to_rle(read_segmentation(segmentation, (size[0], size[1])), size[0], size[1])}
        return {"size": size, "counts": read_run_lengths(segmentation, (size[0], size[1])).data}
    except SegmentationError as error:
        raise DataError(f"{where}: {error}. {error.fix}.") from error


def _class_of(file_name: str, names: Sequence[str]) -> int | None:
    """The class of a file of VOC results: the longest name at the end of its name (`traffic_light`, not `light`)."""
    fitting = [k for k, name in enumerate(names) if file_name.endswith(f"_{name}.txt")]
    return max(fitting, key=lambda k: len(names[k]), default=None)


def _voc_line(line: str, where: str) -> tuple[str, float, list[float]]:
    name, *values = line.split()
    try:
        numbers = [float(v) for v in values]
    except ValueError:
        numbers = []
    if len(numbers) != 5 or not np.isfinite(numbers).all():
        raise DataError(f"{where}: {brief(line)} is not an image name, a score and xmin ymin xmax ymax.")
    return name, numbers[0], numbers[1:]
