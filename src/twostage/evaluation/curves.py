"""Precision over recall and F1 over confidence, per class.

The precision is COCO's: the mean height of a curve is the AP of its class at this IoU. F1 is that of the detections
kept at a confidence, matched by VOC's rule: the F1 that a user gets who sets `conf` to that value.

Letters: K classes, R = 101 recall levels, C = 101 confidences.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from twostage.data.dataset import Dataset
from twostage.evaluation.coco import CocoScores
from twostage.evaluation.results import Results
from twostage.evaluation.voc import match_by_voc


@dataclass(frozen=True, eq=False)
class Curves:
    """`precision[k, r]` is the best at `recall[r]` or above; `f1[k, c]` counts the detections from `confidence[c]` up.

    Classes without objects are not `defined`; their rows are 0.
    """

    iou: float
    names: tuple[str, ...]
    recall: Float64[np.ndarray, " r"]
    precision: Float64[np.ndarray, "k r"]
    confidence: Float64[np.ndarray, " c"]
    f1: Float64[np.ndarray, "k c"]
    defined: Bool[np.ndarray, " k"]

    def average_precision(self) -> Float64[np.ndarray, " k"]:
        """Mean height of each curve; -1 for classes without objects."""
        return np.where(self.defined, self.precision.mean(axis=1), -1.0)

    def best_confidence(self) -> tuple[float, float]:
        """The confidence at which the mean F1 over classes is highest (the lowest of equals), and that F1.

        (0, -1) if no class has objects.
        """
        if not self.defined.any():
            return 0.0, -1.0
        mean = self.f1[self.defined].mean(axis=0)
        best = int(mean.argmax())
        return float(self.confidence[best]), float(mean[best])


def class_curves(dataset: Dataset, results: Results, scores: CocoScores, *, iou: float = 0.5) -> Curves:
    """The curves of all classes at one IoU threshold of `scores`, for all sizes and the highest `max_detections`."""
    t = int(np.flatnonzero(np.isclose(scores.ious, iou))[0])
    precision = scores.precision[t, :, :, 0, -1].T
    confidence = np.linspace(0.0, 1.0, 101)
    return Curves(
        iou=iou,
        names=dataset.names,
        recall=np.linspace(0.0, 1.0, precision.shape[1]),
        precision=precision.clip(min=0.0),
        confidence=confidence,
        f1=_f1(dataset, results, confidence, iou=iou),
        defined=np.any(precision > -1, axis=1),
    )


def _f1(
    dataset: Dataset, results: Results, confidence: Float64[np.ndarray, " c"], *, iou: float
) -> Float64[np.ndarray, "k c"]:
    """2 TP / (objects + detections) of each class at each confidence."""
    right, counted = match_by_voc(dataset, results, iou=iou)
    objects = np.bincount(dataset.labels[~(dataset.crowd | dataset.difficult)], minlength=len(dataset.names))
    f1 = np.zeros((len(dataset.names), len(confidence)))
    for k in range(len(dataset.names)):
        of_class = counted & (results.class_ids == k)
        detected = np.sort(results.scores[of_class])
        hits = np.sort(results.scores[of_class & right])
        kept, true = (len(s) - np.searchsorted(s, confidence, side="left") for s in (detected, hits))
        f1[k] = 2 * true / np.maximum(objects[k] + kept, 1)
    return f1
