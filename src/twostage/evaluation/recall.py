"""Class-agnostic recall of proposals: average recall (Hosang et al. 2015; cocoapi, useCats = 0).

Letters: T IoU thresholds, S object sizes, M numbers of proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from twostage.data.dataset import Dataset, select_images
from twostage.data.proposals import ProposalSet
from twostage.evaluation.coco import COCO_IOUS, SIZES, coco_scores
from twostage.evaluation.results import Results

PROPOSALS = (100, 300, 1000)
# The evaluator holds one dictionary per proposal: at this many it takes about half a gigabyte.
_BLOCK = 500_000


@dataclass(frozen=True, eq=False)
class ProposalRecall:
    """`recall[t, s, m]`: share of objects of a size matched at an IoU by so many proposals per image; -1 undefined."""

    ious: tuple[float, ...]
    counts: tuple[int, ...]
    recall: Float64[np.ndarray, "t s m"]

    def at(self, count: int, *, iou: float | None = None, size: str = "all") -> float:
        """Recall with `count` proposals at one IoU threshold, or averaged over all (AR)."""
        values = self.recall[:, list(SIZES).index(size), self.counts.index(count)]
        return float(values.mean() if iou is None else values[np.isclose(self.ious, iou)][0])

    def summary(self) -> dict[str, float]:
        """AR at each count; at the highest count also by size, and recall at IoU 0.5 if that is a threshold."""
        most = max(self.counts)
        rows = {f"AR{count}": self.at(count) for count in self.counts}
        rows |= {f"AR{size[0]}": self.at(most, size=size) for size in SIZES if size != "all"}
        return rows | ({f"R50@{most}": self.at(most, iou=0.5)} if np.isclose(self.ious, 0.5).any() else {})


def proposal_recall(
    dataset: Dataset, proposals: Results, *, counts: Sequence[int] = PROPOSALS, ious: Sequence[float] = COCO_IOUS
) -> ProposalRecall:
    """Recall of the best proposals of each image for objects of any class; crowds and difficult objects are ignored.

    Matched in blocks of images, because the evaluator's memory grows with the number of proposals.
    """
    owner = dataset.image_indices
    ignored = dataset.crowd | dataset.difficult
    sizes = [(dataset.areas >= low) & (dataset.areas <= high) & ~ignored for low, high in SIZES.values()]
    reached = np.zeros((len(ious), len(SIZES), len(counts)))
    per_block = max(1, _BLOCK // max(counts))
    for first in range(0, len(dataset), per_block):
        last = min(first + per_block, len(dataset))
        part = _best_of_each_image(proposals, first, last, max(counts))
        images = select_images(dataset, np.arange(first, last))
        scores = coco_scores(images, part, class_blind=True, ious=ious, max_detections=counts)
        objects = np.array([np.count_nonzero(of_size[(owner >= first) & (owner < last)]) for of_size in sizes])
        # Recall times objects is an integer; rounding undoes the rounding of the division.
        reached += np.round(scores.recall[:, 0].clip(min=0) * objects[:, None])
    total = np.array([np.count_nonzero(of_size) for of_size in sizes], dtype=float)[:, None]
    recall = np.where(total > 0, reached / np.maximum(total, 1), -1.0)
    return ProposalRecall(tuple(ious), tuple(sorted(counts)), recall)


def as_results(proposals: ProposalSet) -> Results:
    """Proposals as detections of one class."""
    return Results(
        images=np.repeat(np.arange(len(proposals), dtype=np.int64), np.diff(proposals.offsets)),
        boxes=proposals.boxes.astype(np.float64),
        scores=proposals.scores.astype(np.float64),
        class_ids=np.zeros(len(proposals.boxes), dtype=np.int64),
    )


def _best_of_each_image(proposals: Results, first: int, last: int, most: int) -> Results:
    """The `most` best proposals of each image from `first` to `last`, renumbered from 0; the order is kept."""
    rows = np.flatnonzero((proposals.images >= first) & (proposals.images < last))
    by_image = rows[np.lexsort((-proposals.scores[rows], proposals.images[rows]))]
    images = proposals.images[by_image]
    rank = np.arange(len(by_image)) - np.searchsorted(images, images, side="left")
    rows = np.sort(by_image[rank < most])
    return Results(
        images=proposals.images[rows] - first,
        boxes=proposals.boxes[rows],
        scores=proposals.scores[rows],
        class_ids=np.zeros(len(rows), dtype=np.int64),
    )
