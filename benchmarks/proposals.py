"""How many objects selective search and sliding windows reach, and in how many seconds; and what its order is worth.

    python benchmarks/proposals.py --out benchmarks/results/proposals.md

Recall at IoU 0.5 of the blood cells' validation split and of the photos of COCO under $TWOSTAGE_DATA, with 500, 1000,
2000 and all boxes of an image. Seconds are of one image on one core, nothing kept. The orders are those of one search:
OpenCV's own, ours (a seeded draw), and by area times a draw, the paper's with a region's area for its place.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _timing import finish, hardware, table

from twostage.data.dataset import Dataset, select_images
from twostage.data.images import read_image
from twostage.data.proposals import ProposalSet
from twostage.data.recognise import open_dataset
from twostage.evaluation.recall import as_results, proposal_recall
from twostage.models.proposals import selective_search as module
from twostage.models.proposals.sources import NAMES, Source, ranks

COUNTS = (500, 1000, 2000)
FEW = (50, 100, 300, 1000)


def recall(dataset: Dataset, boxes: list[np.ndarray], counts: tuple[int, ...], iou: float = 0.5) -> list[float]:
    """Recall with so many boxes of each image, in their order."""
    proposals = ProposalSet.of(((b, ranks(len(b))) for b in boxes), "x")
    found = proposal_recall(dataset, as_results(proposals), counts=counts, ious=(iou,))
    return [found.at(count, iou=iou) for count in counts]


def searched(dataset: Dataset, source: Source) -> tuple[list[np.ndarray], float]:
    """The boxes of every image, and the seconds of one."""
    images = [read_image(dataset.path(i)) for i in range(len(dataset))]
    begun = time.perf_counter()
    found = [source(image) for image in images]
    return found, (time.perf_counter() - begun) / len(images)


def by_area(boxes: np.ndarray, seed: int) -> np.ndarray:
    """The paper's rank, a place by area times a random number."""
    place = np.argsort(np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable")) + 1
    return np.argsort(place * np.random.default_rng(seed).random(len(boxes)))


def opencvs(boxes: np.ndarray, seed: int) -> np.ndarray:
    """As OpenCV leaves them."""
    return np.arange(len(boxes))


def ordered(dataset: Dataset, order: Callable[[np.ndarray, int], np.ndarray]) -> list[np.ndarray]:
    """Fast selective search's boxes in another order."""
    own = module.rank
    module.rank = order
    try:
        return searched(dataset, Source("selective_search"))[0]
    finally:
        module.rank = own


def main() -> None:
    """Search, match, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    import cv2

    cv2.setNumThreads(1)
    data = Path(os.environ["TWOSTAGE_DATA"]) / "data"
    sets = {
        "blood cells": open_dataset(data / "blood-cells", split="val"),
        "photos": open_dataset(data / "coco-photos", split="instances", on_error="skip"),
    }
    rows, orders = [], []
    for name, dataset in sets.items():
        for source in NAMES:
            boxes, seconds = searched(dataset, Source(source))
            most = max(map(len, boxes))
            half = recall(dataset, boxes, (*COUNTS, most))
            tight = recall(dataset, boxes, (2000, most), 0.7)
            number = np.mean([len(b) for b in boxes])
            shares = [f"{value:.3f}" for value in (*half, *tight)]
            rows.append([name, source, f"{seconds:.2f}", f"{number:.0f}", *shares])
        some = select_images(dataset, np.arange(min(40, len(dataset))))
        for what, order in (("OpenCV's", opencvs), ("ours: a seeded draw", module.rank), ("by area", by_area)):
            shares = recall(some, ordered(some, order), FEW)
            orders.append([name, what, *(f"{value:.3f}" for value in shares)])
    at_tight = ("2000 at 0.7", "all at 0.7")
    text = "\n\n".join(
        [
            "# Proposals without a network",
            "`python benchmarks/proposals.py`: recall at IoU 0.5 (and 0.7) of "
            + ", ".join(f"{len(d.labels)} objects on {len(d)} images ({n})" for n, d in sets.items())
            + ".",
            hardware(),
            table(["pictures", "source", "s an image", "boxes", *map(str, COUNTS), "all", *at_tight], rows),
            "Orders of the fast mode's boxes, at most 40 images each: recall at IoU 0.5 with the first 50 to 1000.",
            table(["pictures", "order", *map(str, FEW)], orders),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
