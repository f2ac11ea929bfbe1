"""COCO's evaluation beside pycocotools: 5000 images, 80 classes, 7 objects and 100 detections an image, and proposals.

python benchmarks/bench_evaluation.py --out benchmarks/results/evaluation.md

Both start from what is in memory: arrays here, COCO's lists of dictionaries there, the ground truth already indexed.
The numbers of both are compared in the same run. `--repeats` is divided by 5: pycocotools takes minutes.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _timing import arguments, compare, finish, hardware, table, versus
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from twostage.data.dataset import Dataset
from twostage.data.flat import FlatStrings
from twostage.evaluation.coco import coco_scores
from twostage.evaluation.evaluate import evaluate
from twostage.evaluation.recall import PROPOSALS, proposal_recall
from twostage.evaluation.results import Results
from twostage.evaluation.voc import voc_scores

CLASSES = 80


def scene(images: int, objects: int, detections: int) -> tuple[Dataset, Results]:
    """Boxes of all sizes; a tenth of the detections lie near an object of their class, as a trained detector's do."""
    rng = np.random.default_rng(0)

    def boxes(n: int) -> np.ndarray:
        corner = rng.uniform(0, 500, (n, 2))
        return np.concatenate([corner, corner + np.exp(rng.uniform(2, 5.5, (n, 2)))], axis=1)

    truth, labels = boxes(images * objects), rng.integers(0, CLASSES, images * objects)
    found, classes = boxes(images * detections), rng.integers(0, CLASSES, images * detections)
    near = rng.permutation(detections)[: detections // 10]
    for place in near:
        rows = np.arange(images) * detections + place
        source = np.arange(images) * objects + rng.integers(0, objects, images)
        sides = np.tile(truth[source, 2:] - truth[source, :2], 2)
        found[rows] = truth[source] + rng.normal(0, 0.08, (images, 4)) * sides
        found[rows, 2:] = np.maximum(found[rows, 2:], found[rows, :2] + 1)
        classes[rows] = labels[source]
    names = FlatStrings.of([f"{i}.jpg" for i in range(images)])
    dataset = Dataset(
        root=Path(),
        layout="coco",
        split="val",
        names=tuple(map(str, range(CLASSES))),
        category_ids=np.arange(1, CLASSES + 1),
        image_ids=np.arange(1, images + 1),
        sizes=np.full((images, 2), 750, dtype=np.int32),
        offsets=np.arange(images + 1) * objects,
        boxes=truth.astype(np.float32),
        labels=labels,
        crowd=rng.random(len(truth)) < 0.01,
        difficult=np.zeros(len(truth), dtype=bool),
        areas=(truth[:, 2:] - truth[:, :2]).prod(axis=1) * 0.6,
        annotation_ids=np.arange(1, len(truth) + 1),
        masks=None,
        files=names,
        paths=names,
        faults=(),
    )
    scores = rng.random(len(found), dtype=np.float32).astype(np.float64)
    images_of = np.repeat(np.arange(images), detections)
    return dataset, Results(images_of, found.astype(np.float32).astype(np.float64), scores, classes)


def indexed(dataset: Dataset) -> COCO:
    """The ground truth as pycocotools holds it."""
    xywh = np.concatenate([dataset.boxes[:, :2], dataset.boxes[:, 2:] - dataset.boxes[:, :2]], axis=1).astype(float)
    owner = np.repeat(dataset.image_ids, np.diff(dataset.offsets))
    columns = (dataset.annotation_ids, owner, dataset.labels + 1, xywh, dataset.areas, dataset.crowd.astype(int))
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in dataset.image_ids.tolist()],
        "categories": [{"id": k} for k in range(1, CLASSES + 1)],
        "annotations": [dict(zip(keys, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def peer(truth: COCO, entries: list[dict], *, proposals: bool = False) -> Callable[[], np.ndarray]:
    """pycocotools from entries to its arrays; the recalls are given back."""

    def run() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = COCOeval(truth, truth.loadRes(entries), "bbox")
            if proposals:
                evaluator.params.useCats, evaluator.params.maxDets = 0, list(PROPOSALS)
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator.eval["recall"] if proposals else evaluator.eval["precision"]

    return run


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    repeats = max(1, args.repeats // 5)
    dataset, results = scene(5000, 7, 100)
    few, proposals = scene(500, 7, 1000)
    detections, boxes = (
        peer(indexed(dataset), results.to_coco(dataset)),
        peer(indexed(few), proposals.to_coco(few), proposals=True),
    )
    far = [
        float(np.abs(detections() - coco_scores(dataset, results).precision).max()),
        float(np.abs(boxes()[:, 0] - proposal_recall(few, proposals).recall).max()),
    ]
    times = compare(
        {
            "coco": lambda: coco_scores(dataset, results),
            "coco, pycocotools": detections,
            "recall": lambda: proposal_recall(few, proposals),
            "recall, pycocotools": boxes,
            "voc": lambda: voc_scores(dataset, results),
            "all": lambda: evaluate(dataset, results),
        },
        repeats=repeats,
        warmup=0,
    )
    rows = [
        [
            *versus("COCO AP and AR, 5000 images x 100 detections", times["coco"], times["coco, pycocotools"]),
            f"{far[0]:.1e}",
        ],
        [*versus("AR of 500 images x 1000 proposals", times["recall"], times["recall, pycocotools"]), f"{far[1]:.1e}"],
        ["VOC AP, 5000 images x 100 detections", times["voc"], "", "", ""],
        ["the whole report: COCO, VOC, curves, confusion", times["all"], "", "", ""],
    ]
    header = [
        "milliseconds, median (minimum)",
        "twostage",
        "pycocotools",
        "times faster",
        "largest difference of any number",
    ]
    finish(f"# Evaluation\n\n{hardware()}; {repeats} repeats\n\n{table(header, rows)}", args.out)


if __name__ == "__main__":
    main()
