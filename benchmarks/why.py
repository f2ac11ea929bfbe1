"""The account of missed objects, held against whole predictions, and what a trace costs.

    python benchmarks/why.py runs/cells/weights/best.safetensors --data blood-cells --out benchmarks/results/why.md

On the test split of blood-cells, at a score of 0.5: the causes add up to what recall lacks; every change of settings
that is said to keep an object is tried with a detector that is loaded with it, from the image on; and so is every AP of
the table of settings, by evaluation, to 1e-9. Times are medians (minima), interleaved in one process, of one photo.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _pictures import photos, whence
from _timing import compare, finish, hardware, table
from bench_inference import FASTER, SHAPE

from twostage import Detector
from twostage.data.recognise import open_dataset
from twostage.evaluation.coco import coco_scores
from twostage.inspection.account import Objects, account
from twostage.inspection.ledger import Ledger, ledger
from twostage.inspection.settings import candidates, worth
from twostage.ops.boxes import iou

CONF = 0.5


def held(detector: Detector, weights: Path, seen: Ledger) -> tuple[int, int]:
    """How many changes are proposed, and how many keep their object in a detector that is loaded with them."""
    kept = proposed = 0
    for one in seen.missed:
        if not one.remedy.keeps:
            continue
        proposed += 1
        data = seen.dataset
        fields = {"postprocess.score_threshold": CONF, **{field: value for field, value, _ in one.remedy.changes}}
        other = Detector.load(weights, device="cpu", **fields)
        found = other.predict(data.image(one.image), conf=other.config.postprocess.score_threshold)
        own = found.boxes[found.class_ids == data.labels[one.row]]
        truth = torch.from_numpy(data.boxes[one.row][None])
        kept += bool((iou(torch.from_numpy(own), truth) >= 0.5).any())
    return proposed, kept


def of_settings(detector: Detector, weights: Path, seen: Ledger) -> list[list[str]]:
    """Rows of the settings: AP in the table, and by evaluation."""
    post, data, rows = detector.postprocess(None, None, 100), seen.dataset, []
    for one in worth(detector.runner, data, post, list(candidates(detector.config, post))).others:
        other = Detector.load(weights, device="cpu", **{"postprocess.max_det": 100, **one.fields})
        limits = (1, 10, max(100, other.config.postprocess.max_det))
        expected = coco_scores(data, other.detect_dataset(data), max_detections=limits).summary()["AP"]
        ((field, value),) = one.fields.items()
        rows.append([field, str(value), f"{one.AP:.9f}", f"{abs(one.AP - expected):.0e}"])
    return rows


def times(detector: Detector, image: np.ndarray, repeats: int) -> list[str]:
    """Milliseconds of a prediction, of a trace, and of a trace of which everything is asked."""
    conf = detector.config.postprocess.score_threshold
    truth = Objects.of(np.array([[10.0, 10, 80, 90]] * 10), np.zeros(10, np.int64))

    def whole() -> object:
        trace = detector.trace(image)
        return trace.anchors, account(trace, truth, detector.config.postprocess)

    cases: dict[str, Callable[[], object]] = {
        "predict": partial(detector.predict, image, conf=conf),
        "trace": partial(detector.trace, image),
        "all": whole,
    }
    taken = compare(cases, repeats=repeats)
    share = taken["trace"].median / taken["predict"].median
    return [str(taken["predict"]), str(taken["trace"]), f"{share:.2f}", str(taken["all"])]


def main() -> None:
    """Check, measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="detector of blood cells")
    parser.add_argument("--data", type=Path, required=True, help="blood-cells")
    parser.add_argument("--split", default="test")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    detector, dataset = Detector.load(given.weights, device="cpu"), open_dataset(given.data, split=given.split)
    seen = ledger(detector.runner, dataset, detector.postprocess(CONF, None, None))
    results = detector.detect_dataset(dataset, conf=CONF)
    recall = coco_scores(dataset, results, ious=(0.5,)).recall[0, :, 0, -1]
    counted = np.bincount(dataset.labels[seen.counted], minlength=len(dataset.names))
    by_evaluation = float((recall.clip(min=0) * counted).sum() / counted.sum())
    proposed, kept = held(detector, given.weights, seen)
    causes = [[str(cause), str(count)] for cause, count in seen.causes().items()]
    settings = of_settings(detector, given.weights, seen)
    (pixels,) = photos(SHAPE, 1)
    image = (pixels.permute(1, 2, 0) * 255).byte().numpy()
    large = Detector.build(FASTER, dataset.names, device="cpu")
    costs = [
        [
            detector.name,
            f"{dataset.sizes[0][0]} x {dataset.sizes[0][1]}",
            *times(detector, dataset.image(0), given.repeats),
        ],
        [FASTER, f"{SHAPE[0]} x {SHAPE[1]}", *times(large, image, given.repeats)],
    ]
    finish(
        "\n\n".join(
            [
                "# Why objects are missed",
                __doc__.split("\n\n", 2)[2].strip().replace("\n", " "),
                f"{hardware()}. {whence()} {detector.name}, {given.split} split of {given.data.name}.",
                f"{len(seen.missed)} of {int(seen.counted.sum())} objects are missed, each for one cause; the sum is "
                f"{len(seen.missed) / seen.counted.sum():.6f}, 1 - recall by evaluation {1 - by_evaluation:.6f}. "
                f"{kept} of {proposed} proposed changes keep their object in a detector that is loaded with them.",
                table(["cause", "objects"], causes),
                "## Settings: AP of the table, and how far evaluation with that setting is from it",
                table(["setting", "value", "AP", "difference"], settings),
                "## What a trace costs, milliseconds",
                table(["detector", "image", "predict", "trace", "trace / predict", "with all fates and causes"], costs),
            ]
        ),
        given.out,
    )


if __name__ == "__main__":
    main()
