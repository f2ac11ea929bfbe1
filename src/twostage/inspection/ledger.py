"""The account of a data set: why each missed object was missed, how far objects come at each step, what causes cost.

Letters: B objects of all images, of which some are not counted (crowds, difficult ones).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from twostage.data.dataset import Dataset, without_objects
from twostage.evaluation.coco import SIZES, coco_scores
from twostage.evaluation.results import Results
from twostage.inference.runner import Runner
from twostage.inspection.account import Objects, account
from twostage.inspection.causes import Cause, Miss, Step
from twostage.inspection.remedy import Remedy, remedy
from twostage.inspection.trace import trace
from twostage.inspection.words import remedy_to_dict
from twostage.models.heads.postprocess import PostprocessConfig


class MissedObject(NamedTuple):
    """A missed object of a data set: its image, its row, why it was missed, and what would have kept it."""

    image: int
    row: int
    miss: Miss
    remedy: Remedy


@dataclass(frozen=True, eq=False)
class Ledger:
    """`reached` are the objects that some box hits at each step, `found` those that a detection was counted for."""

    dataset: Dataset
    config: PostprocessConfig
    counted: Bool[np.ndarray, " b"]
    reached: dict[Step, Bool[np.ndarray, " b"]]
    anchor_iou: Float[np.ndarray, " b"]
    missed: tuple[MissedObject, ...]

    @property
    def found(self) -> Bool[np.ndarray, " b"]:
        """The objects that a detection was counted for."""
        return self.reached[Step.FOUND] & self.counted

    @property
    def recall(self) -> float:
        """The share of objects that were found; 1 minus it is the sum of the causes. -1 without objects."""
        return float(self.found.sum() / self.counted.sum()) if self.counted.any() else -1.0

    def causes(self) -> dict[Cause, int]:
        """The number of missed objects by cause, most first."""
        return dict(Counter(one.miss.cause for one in self.missed).most_common())

    def rows(self) -> Iterator[tuple[str, Bool[np.ndarray, " b"]]]:
        """The groups of objects in the funnel, with which objects they hold: all, classes, COCO's sizes."""
        data = self.dataset
        yield "all", self.counted
        for k, name in enumerate(data.names):
            yield name, self.counted & (data.labels == k)
        for name, (low, high) in SIZES.items():
            if name != "all":
                yield name, self.counted & (data.areas >= low) & (data.areas < high)

    def funnel(self) -> dict[str, dict[str, float]]:
        """By group of objects and step the share that some box hits there: the ceiling of recall; -1 without any."""
        return {
            name: {str(step): float(hit[group].mean()) if group.any() else -1.0 for step, hit in self.reached.items()}
            for name, group in self.rows()
        }

    def costs(self, results: Results) -> dict[Cause, dict[str, float]]:
        """What each cause costs: AP and AP50 without the objects that were missed for it, minus those with them.

        As TIDE counts missed objects (Bolya et al. 2020, section 2.3): they are taken out of the data set.
        """
        before = coco_scores(self.dataset, results).summary()
        costs = {}
        for cause in self.causes():
            rows = [one.row for one in self.missed if one.miss.cause == cause]
            after = coco_scores(without_objects(self.dataset, rows), results).summary()
            costs[cause] = {name: after[name] - before[name] for name in ("AP", "AP50")}
        return costs

    def to_dict(self, costs: dict[Cause, dict[str, float]]) -> dict[str, Any]:
        """A dictionary {"recall", "stages", "causes", "objects"}."""
        counts, needs = self.causes(), Counter(one.miss.cause for one in self.missed if one.remedy.needs_training)
        return {
            "recall": self.recall,
            "stages": self.funnel(),
            "causes": {
                str(cause): {"objects": count, "need_training": needs[cause], **costs.get(cause, {})}
                for cause, count in counts.items()
            },
            "objects": [self._object(one) for one in self.missed],
        }

    def _object(self, one: MissedObject) -> dict[str, Any]:
        data, detail = self.dataset, dict(one.miss.detail)
        for name in ("seen_as", "by_label"):
            if name in detail:
                detail[name] = data.names[detail[name]]
        return {
            "file": data.file_name(one.image),
            "image_id": int(data.image_ids[one.image]),
            "annotation_id": int(data.annotation_ids[one.row]),
            "label": data.names[int(data.labels[one.row])],
            "truth": data.boxes[one.row].tolist(),
            "cause": str(one.miss.cause),
            **detail,
            **remedy_to_dict(one.miss, one.remedy, data.names),
        }


def ledger(
    runner: Runner,
    dataset: Dataset,
    config: PostprocessConfig,
    after_image: Callable[[int, int], None] = lambda done, all: None,
) -> Ledger:
    """The account of a data set under a post-processing, which may be stricter than the model's own.

    `after_image` is called with the number of images that are done and that of all.
    """
    counted = ~(dataset.crowd | dataset.difficult)
    reached: dict[Step, Any] = {}
    anchor_iou = np.zeros(len(counted), dtype=np.float32)
    missed: list[MissedObject] = []
    for index in range(len(dataset)):
        first, last = dataset.offsets[index : index + 2].tolist()
        rows = slice(first, last)
        objects = Objects.of(dataset.boxes[rows], dataset.labels[rows], counted[rows])
        seen = trace(runner, dataset.image(index), dataset.names)
        one = account(seen, objects, config)
        for step, hits in one.reached.items():
            reached.setdefault(step, np.zeros(len(counted), dtype=bool))[rows] = hits
        anchor_iou[rows] = one.anchor_iou
        for place, miss in one.misses.items():
            missed.append(MissedObject(index, first + place, miss, remedy(runner, seen, objects, place, miss, config)))
        after_image(index + 1, len(dataset))
    return Ledger(dataset, config, counted, reached, anchor_iou, tuple(missed))
