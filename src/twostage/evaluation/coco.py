"""COCO metrics: average precision and recall over IoU thresholds and object sizes (Lin et al. 2014; cocoapi).

Computed by faster-coco-eval from flat arrays, and equal to pycocotools: crowds match any number of detections and are
ignored, detections of equal score keep their order, the data set's `areas` determine the size of an object.

Four differences from pycocotools, none of which changes the box metrics of a COCO data set:
- objects without a mask among objects with one are crowds when masks are scored, with their boxes as masks;
- objects that VOC marks as difficult are ignored and match any number of detections, as crowds do, but with the plain
  IoU and not that of crowds;
- the size of a detected mask is the area of the mask; pycocotools takes that of the box if the file has boxes as well;
- annotation id 0 is a valid id; in pycocotools a match with it counts as no match.

Letters: T IoU thresholds, R recall levels, K classes, S object sizes, M limits of detections per image and class.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Bool, Float64, Int64

from twostage.data.dataset import Dataset
from twostage.evaluation.groups import mean_of_defined, one_or_all
from twostage.evaluation.results import Results
from twostage.ops.masks import area

COCO_IOUS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
MAX_DETECTIONS = (1, 10, 100)
# The number of digits of a value that is not a short decimal.
_BINARY = 99
_BLOCK = 100_000  # detections given at once to the evaluator, which holds each as a dictionary
# Square pixels of object area, both ends included.
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


@dataclass(frozen=True, eq=False)
class CocoScores:
    """The arrays of COCO's evaluation; -1 where a class has no object of a size.

    `precision[t, r, k, s, m]` is the best precision at a recall of at least r / 100, `scores` the score of the
    detection with which this recall is reached, `recall[t, k, s, m]` the highest recall.
    """

    ious: tuple[float, ...]
    max_detections: tuple[int, ...]
    precision: Float64[np.ndarray, "t r k s m"]
    scores: Float64[np.ndarray, "t r k s m"]
    recall: Float64[np.ndarray, "t k s m"]

    def average_precision(self, *, iou: float | None = None, size: str = "all", class_id: int | None = None) -> float:
        """Mean precision over recall levels, classes (or one) and IoU thresholds (or one), at the highest limit."""
        return mean_of_defined(
            self.precision[self._thresholds(iou), :, one_or_all(class_id), list(SIZES).index(size), -1]
        )

    def average_recall(
        self, *, iou: float | None = None, size: str = "all", most: int | None = None, class_id: int | None = None
    ) -> float:
        """Mean of the highest recall over classes (or one) and IoU thresholds (or one), with `most` detections."""
        limit = -1 if most is None else self.max_detections.index(most)
        return mean_of_defined(self.recall[self._thresholds(iou), one_or_all(class_id), list(SIZES).index(size), limit])

    def summary(self, class_id: int | None = None) -> dict[str, float]:
        """COCO's twelve metrics and AP90, of all classes or of one; in 0..1, -1 if undefined."""
        ap, ar = partial(self.average_precision, class_id=class_id), partial(self.average_recall, class_id=class_id)
        precision = {"AP": ap(), **{f"AP{round(100 * iou)}": ap(iou=iou) for iou in (0.5, 0.75, 0.9)}}
        sizes = {"s": "small", "m": "medium", "l": "large"}
        precision |= {f"AP{letter}": ap(size=size) for letter, size in sizes.items()}
        recall = {f"AR{most}": ar(most=most) for most in self.max_detections}
        return precision | recall | {f"AR{letter}": ar(size=size) for letter, size in sizes.items()}

    def _thresholds(self, iou: float | None) -> slice:
        if iou is None:
            return slice(None)
        index = int(np.flatnonzero(np.isclose(self.ious, iou))[0])
        return slice(index, index + 1)


def coco_scores(
    dataset: Dataset,
    results: Results,
    *,
    masks: bool = False,
    class_blind: bool = False,
    ious: Sequence[float] = COCO_IOUS,
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> CocoScores:
    """Match and accumulate by boxes, or by masks with `masks`; `class_blind` treats all classes as one."""
    truth = truth_shapes(dataset, masks=masks)
    detected = detected_shapes(dataset, results, masks=masks)
    classes = _ranks(dataset.category_ids)
    if class_blind:
        # As pycocotools orders them: by class, then as they come.
        truth, detected, classes = truth.as_one_class(), detected.as_one_class(), np.ones(1, dtype=np.int64)
    parts = []
    for first, last in _class_blocks(detected.categories, len(classes)):
        some = truth.of_classes(first, last), detected.of_classes(first, last)
        parts.append(_grids(len(dataset), *some, last - first, ious, max_detections))
    precision, scores, recall = (np.concatenate(grids, axis=-3) for grids in zip(*parts, strict=True))
    columns = classes - 1
    return CocoScores(
        ious=tuple(ious),
        max_detections=tuple(sorted(max_detections)),
        precision=precision[:, :, columns],
        scores=scores[:, :, columns],
        recall=recall[:, columns],
    )


def _class_blocks(categories: Int64[np.ndarray, " n"], classes: int) -> Iterator[tuple[int, int]]:
    """Ranges of ranks (the last excluded) with at most `_BLOCK` detections each, unless one class has more."""
    counts = np.bincount(categories, minlength=classes + 1)
    first, held = 1, 0
    for rank in range(1, classes + 1):
        if rank > first and held + counts[rank] > _BLOCK:
            yield first, rank
            first, held = rank, 0
        held += counts[rank]
    yield first, classes + 1


def _grids(
    images: int,
    truth: "Shapes",
    detected: "Shapes",
    classes: int,
    ious: Sequence[float],
    max_detections: Sequence[int],
) -> list[np.ndarray]:
    """Precision, scores [iou, level, class, size, detections] and recall (without level) of some classes."""
    evaluator = COCOeval_faster(_as_coco(images, classes, truth), _as_coco(images, classes, detected), "bbox")
    evaluator.params.iouThrs = np.array(ious, dtype=np.float64)
    evaluator.params.maxDets = sorted(max_detections)
    # IoUs are computed from the flat arrays here instead of from lists of dictionaries, for boxes and masks alike.
    evaluator.computeIoU = _ious_by_group(truth, detected, max(max_detections))
    evaluator.evaluate()
    evaluator.accumulate()
    tail = (classes, len(SIZES), len(max_detections))
    shapes = {"precision": (len(ious), 101, *tail), "scores": (len(ious), 101, *tail), "recall": (len(ious), *tail)}
    return [np.asarray(evaluator.eval[key], dtype=np.float64).reshape(shape) for key, shape in shapes.items()]


@dataclass(frozen=True, eq=False)
class Shapes:
    """Objects or detections as columns; `images` and `categories` are ranks of COCO's ids, `shapes` xywh or RLEs."""

    images: Int64[np.ndarray, " n"]
    categories: Int64[np.ndarray, " n"]
    areas: Float64[np.ndarray, " n"]
    shapes: Float64[np.ndarray, "n 4"] | np.ndarray
    crowd: Bool[np.ndarray, " n"]
    ignored: Bool[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]

    def of_classes(self, first: int, last: int) -> "Shapes":
        """The rows with ranks from `first` up to `last` (excluded), renumbered from 1."""
        some = self.take((self.categories >= first) & (self.categories < last))
        return replace(some, categories=some.categories - first + 1)

    def as_one_class(self) -> "Shapes":
        """All rows as one class, ordered by class."""
        whole = self.take(np.argsort(self.categories, kind="stable"))
        return replace(whole, categories=np.ones_like(whole.categories))

    def take(self, rows: np.ndarray) -> "Shapes":
        """These rows, in this order."""
        return Shapes(*(column[rows] for column in vars(self).values()))


def _ranks(ids: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
    """1, 2 ... in the order of the ids, which decides ties; the evaluator's doubles cannot represent large ids."""
    return np.unique(ids, return_inverse=True)[1] + 1


def truth_shapes(dataset: Dataset, *, masks: bool) -> Shapes:
    """The objects of a data set as the evaluator takes them; with `masks`, objects without a mask are crowds."""
    rles = [rle for i in range(len(dataset)) for rle in dataset.masks_of(i)] if masks else []
    # Detections in the box of an object without a mask are ignored, as in a crowd.
    crowd = dataset.crowd | dataset.unmasked if masks else dataset.crowd
    return Shapes(
        images=_ranks(dataset.image_ids)[dataset.image_indices],
        categories=_ranks(dataset.category_ids)[dataset.labels],
        areas=dataset.areas,
        shapes=_rle_column(rles) if masks else _xywh(dataset.boxes),
        crowd=crowd,
        ignored=crowd | dataset.difficult,
        scores=np.zeros(len(dataset.labels)),
    )


def detected_shapes(dataset: Dataset, results: Results, *, masks: bool) -> Shapes:
    """The detections as the evaluator takes them."""
    none = np.zeros(len(results), dtype=bool)
    rles = results.masks or []
    xywh = _xywh(results.boxes)
    return Shapes(
        images=_ranks(dataset.image_ids)[results.images],
        categories=_ranks(dataset.category_ids)[results.class_ids],
        areas=np.array([area(rle) for rle in rles], dtype=np.float64) if masks else xywh[:, 2] * xywh[:, 3],
        shapes=_rle_column(rles) if masks else xywh,
        crowd=none,
        ignored=none,
        scores=results.scores,
    )


def _xywh(boxes: np.ndarray) -> Float64[np.ndarray, "n 4"]:
    """COCO's x, y, width, height, as written in a file.

    Corners were computed as x + width, in float32 for a data set, and x2 - x1 differs from the width by rounding, so
    that a detection whose IoU is exactly a threshold could change. Each coordinate is therefore replaced by the decimal
    of the fewest digits (at most six) that rounds to it, and a width has as many digits as its corners.
    """
    values = boxes.astype(np.float64)
    slack = np.spacing(np.abs(boxes)).astype(np.float64) * (0.5 if boxes.dtype == np.float32 else 2)
    decimals, digits = values.copy(), np.full(values.shape, _BINARY)
    for d in range(6, -1, -1):
        rounded = np.round(values, d)
        same = np.abs(rounded - values) <= slack
        decimals[same], digits[same] = rounded[same], d
    low, high = decimals[:, :2], decimals[:, 2:]
    widest = np.maximum(digits[:, :2], digits[:, 2:])
    sides = high - low
    for d in range(7):
        sides = np.where(widest == d, np.round(sides, d), sides)
    return np.concatenate([low, sides], axis=1)


def _rle_column(rles: Sequence[Any]) -> np.ndarray:
    column = np.empty(len(rles), dtype=object)
    column[:] = rles
    return column


def _as_coco(images: int, classes: int, shapes: Shapes) -> COCO:
    """The data set of the evaluator; ids start at 1, because 0 means "unmatched" in it."""
    keys = ("id", "image_id", "category_id", "area", "iscrowd", "score")
    ids, ignored = np.arange(1, len(shapes.images) + 1), shapes.ignored.astype(int)
    columns = (ids, shapes.images, shapes.categories, shapes.areas, ignored, shapes.scores)
    rows = [dict(zip(keys, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
    documents = {"images": [{"id": i} for i in range(1, images + 1)], "annotations": rows}
    return COCO({**documents, "categories": [{"id": k} for k in range(1, classes + 1)]})


def _ious_by_group(truth: Shapes, detected: Shapes, most: int) -> Callable[..., np.ndarray | list]:
    """IoU of the `most` best detections with the objects of a category on an image, in the evaluator's order."""
    true_rows, true_groups = _grouped(truth)
    detected_rows, detected_groups = _grouped(detected)

    def ious(image: int | np.integer, category: int | np.integer) -> np.ndarray | list:
        """[detections, objects] of one category on one image; [] without any of either, as the evaluator expects."""
        key = int(image), int(category)
        t, d = true_groups.get(key), detected_groups.get(key)
        if t is None or d is None:
            return []
        rows = true_rows[t]
        best = detected_rows[d][:most]
        crowd = truth.crowd[rows].astype(int).tolist()
        return np.asarray(coco_mask.iou(plain_shapes(detected.shapes[best]), plain_shapes(truth.shapes[rows]), crowd))

    return ious


def _grouped(shapes: Shapes) -> tuple[np.ndarray, dict[tuple[int, int], slice]]:
    """Rows ordered by image, category and falling score, and which of them belong to each image and category."""
    rows = np.lexsort((-shapes.scores, shapes.categories, shapes.images))
    images, categories = shapes.images[rows], shapes.categories[rows]
    new = np.flatnonzero((np.diff(images) != 0) | (np.diff(categories) != 0)) + 1
    edges = [0, *new.tolist(), len(rows)] if len(rows) else []
    keys = zip(images[edges[:-1]].tolist(), categories[edges[:-1]].tolist(), strict=True)
    return rows, {key: slice(a, b) for key, a, b in zip(keys, edges, edges[1:], strict=False)}


def plain_shapes(shapes: np.ndarray) -> np.ndarray | list[dict]:
    """Shapes in the form that faster-coco-eval's IoU takes: an array of boxes, or a list of RLEs."""
    return shapes.tolist() if shapes.dtype == object else shapes
