"""From the evidence about labels to suggestions: the rules of the label audit, one per kind.

As in ObjectLab (Tkachenko, Thyagarajan and Mueller 2023) there are overlooked, badly located and swapped labels, each
with a score of its own; as in Schubert et al. 2024 both stages of a two-stage detector judge them. The head also judges
the label's own box, the RPN's objectness stands beside the head's score, and a mirrored view beside the image
(`inspection.evidence`). Letters: G labels, N candidates, K classes.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from twostage.data.dataset import Dataset
from twostage.inspection.evidence import SAME, SURE, Evidence
from twostage.inspection.explained import Explained, explain, iou_of
from twostage.inspection.suggestion import Kind, Suggestion

FAINT = 0.1  # probability below which an object is not suggested, unless the RPN is sure of it
COPIES = 0.9  # IoU of two labels from which on they are one object's, whatever is found there
EXACT = 0.999
LEAST_OFF = 0.1  # displacement, as a share of the box's side, below which a box is never called loose
LEAST_SPREAD = 0.02  # of usual displacements: a network that fits its labels still errs by that
UNUSUAL = 10.0  # times the usual spread at which a loose box has 0.63 of the highest value
UNSEEN = 0.3  # the highest probability of any object at a label that is called not found


class Judged(NamedTuple):
    """An image's labels with the evidence about them; `rows` are those of the data set."""

    image: int
    rows: Int[np.ndarray, " g"]
    boxes: Float[np.ndarray, "g 4"]
    labels: Int[np.ndarray, " g"]
    counted: Bool[np.ndarray, " g"]  # neither crowd nor difficult: only these are doubted
    evidence: Evidence
    scores: Float[np.ndarray, "n k"]  # of the candidates, the mean of both views
    explained: Explained


def find_faults(dataset: Dataset, evidence: Mapping[int, Evidence]) -> list[Suggestion]:
    """Suggestions of all kinds for the images that there is evidence about."""
    judged = [_judged(dataset, image, one) for image, one in sorted(evidence.items())]
    sure = _ranks(judged)
    usual = usual_offsets(judged)
    found: list[Suggestion] = []
    for one in judged:
        copies = list(duplicates(one, dataset))
        found += copies
        found += missing(one, dataset, sure)
        repeated = {suggestion.row for suggestion in copies}
        for rule in (wrong_classes(one, dataset), loose_boxes(one, dataset, usual), not_found(one, dataset)):
            found += [suggestion for suggestion in rule if suggestion.row not in repeated]
    return found


def _judged(dataset: Dataset, image: int, evidence: Evidence) -> Judged:
    first, last = dataset.offsets[image : image + 2].tolist()
    rows = np.arange(first, last)
    scores = (evidence.scores + evidence.mirrored) / 2
    boxes, crowd = dataset.boxes[rows], dataset.crowd[rows]
    explained = explain(evidence, boxes, crowd, scores.max(axis=1, initial=0.0))
    counted = ~(crowd | dataset.difficult[rows])
    return Judged(image, rows, boxes, dataset.labels[rows], counted, evidence, scores, explained)


def missing(one: Judged, dataset: Dataset, sure: "Ranks") -> Iterator[Suggestion]:
    """Candidates that no label stands for: by their probability in both views, then by the RPN's rank.

    What overlaps a label that stands for another object counts less: it may be a part of that.
    """
    evidence, explained = one.evidence, one.explained
    for n in np.flatnonzero((explained.label < 0) & (explained.inside < SAME)).tolist():
        label = int(one.scores[n].argmax())
        score, objectness = float(one.scores[n, label]), float(evidence.objectness[n])
        rank = sure.of(objectness)
        if score < FAINT and objectness < SURE:
            continue
        overlap = float(explained.overlaps[:, n].max(initial=0.0))
        value = (0.95 * score + 0.05 * rank) * (1 - overlap) ** 0.5
        what = f"{dataset.names[label]} {score:.2f} (mirrored {float(evidence.mirrored[n, label]):.2f})"
        why = f"{what}, {f'RPN {objectness:.2f}, ' if objectness else ''}no label there"
        if score < FAINT:
            why = f"the RPN is sure ({objectness:.2f}), the head is not ({score:.2f}); no label there"
        yield Suggestion(Kind.MISSING, one.image, None, _box(evidence.boxes[n]), label, value, why)


def wrong_classes(one: Judged, dataset: Dataset) -> Iterator[Suggestion]:
    """Labels whose own box another class fits better: by the difference of the probabilities there.

    Not those of a detection near it, which may be of another object.
    """
    for g in np.flatnonzero(one.counted).tolist():
        own, scores = int(one.labels[g]), one.evidence.label_scores[g]
        others = np.where(np.arange(len(scores)) == own, -1.0, scores)
        other = int(others.argmax())
        difference = float(scores[other] - scores[own])
        if len(scores) > 1 and difference > 0:
            why = f"{dataset.names[other]} {scores[other]:.2f}, {dataset.names[own]} {scores[own]:.2f} at the label"
            yield Suggestion(Kind.WRONG_CLASS, one.image, int(one.rows[g]), _box(one.boxes[g]), other, difference, why)


class Offsets(NamedTuple):
    """How far labels usually are from where the network has them, and the spread: centre x, y, log of width, height."""

    middle: Float[np.ndarray, " 4"]
    spread: Float[np.ndarray, " 4"]


def usual_offsets(judged: list[Judged]) -> Offsets:
    """The median of all labels, and the median absolute deviation, scaled to a standard deviation."""
    offsets = np.concatenate([np.zeros((1, 4)), *(opinions(one)[1] for one in judged)])
    middle = np.median(offsets, axis=0)
    return Offsets(middle, np.maximum(1.4826 * np.median(np.abs(offsets - middle), axis=0), LEAST_SPREAD))


def opinions(one: Judged) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "m 4"]]:
    """The places of labels that stand for a candidate, and how far they are from where the network has the object.

    Half of that is the candidate's box, half the mean of where each view and stage moves the label's own box. Centres
    are displaced by shares of the label's sides, sides by the logarithm of their ratio.
    """
    places = np.flatnonzero((one.explained.candidate >= 0) & one.counted)
    boxes, candidates = one.boxes[places], one.evidence.boxes[one.explained.candidate[places]]
    where = (candidates + one.evidence.label_boxes[places].mean(axis=1)) / 2
    sides, others = (((b[:, 2:] - b[:, :2]).clip(min=1e-6)) for b in (boxes, where))
    centres = (where[:, :2] + where[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / sides
    return places, np.concatenate([centres, np.log(others / sides)], axis=1)


def loose_boxes(one: Judged, dataset: Dataset, usual: Offsets) -> Iterator[Suggestion]:
    """Labels that the network moves further than others: by the most unusual of the four displacements.

    The spread is measured on the other labels: where annotators, or the network, place a side loosely in general, a
    large displacement of it is no sign of a fault.
    """
    places, offsets = opinions(one)
    for g, off in zip(places.tolist(), np.abs(offsets - usual.middle), strict=True):
        n = int(one.explained.candidate[g])
        certainty = float(one.scores[n].max())
        worst = int((off / usual.spread).argmax())
        unusual = float(off[worst] / usual.spread[worst])
        if off.max() < LEAST_OFF:
            continue
        value = certainty**0.5 * (1 - math.exp(-unusual / UNUSUAL))
        what = ("moved sideways", "moved up or down", "of another width", "of another height")[worst]
        why = f"{what}, {unusual:.1f} times the usual; IoU {float(one.explained.overlaps[g, n]):.2f} with"
        why += f" {dataset.names[int(one.scores[n].argmax())]} {certainty:.2f}"
        yield Suggestion(
            Kind.LOOSE_BOX,
            one.image,
            int(one.rows[g]),
            _box(one.evidence.boxes[n]),
            int(one.labels[g]),
            value,
            why,
        )


def not_found(one: Judged, dataset: Dataset) -> Iterator[Suggestion]:
    """Labels at whose place neither the head nor a candidate has an object."""
    for g in np.flatnonzero(one.counted).tolist():
        n = int(one.explained.candidate[g])
        at_label = float(one.evidence.label_scores[g].max(initial=0.0))
        near = float(one.scores[n].max()) if n >= 0 else 0.0
        if max(at_label, near) < UNSEEN:
            why = f"the best score at the label is {at_label:.2f}, of a box near it {near:.2f}"
            yield Suggestion(Kind.NOT_FOUND, one.image, int(one.rows[g]), None, None, 1 - max(at_label, near), why)


def duplicates(one: Judged, dataset: Dataset) -> Iterator[Suggestion]:
    """Pairs of labels on one object: copies, and those that share one candidate. The less probable one is doubted."""
    overlaps = iou_of(one.boxes, one.boxes)
    pairs = np.argwhere(np.triu(overlaps >= SAME, k=1) & one.counted & one.counted[:, None])
    doubted: set[int] = set()
    for a, b in pairs[np.argsort(-overlaps[tuple(pairs.T)], kind="stable")].tolist():
        if {a, b} & doubted:
            continue
        probable = one.evidence.label_scores[[a, b], one.labels[[a, b]]]
        keep, doubt = (a, b) if probable[0] >= probable[1] else (b, a)
        if overlaps[a, b] < COPIES and not _shares_candidate(one, keep, doubt):
            continue
        doubted.add(doubt)
        exact = "exactly " if overlaps[a, b] >= EXACT else ""
        names = dataset.names[int(one.labels[doubt])], dataset.names[int(one.labels[keep])]
        why = f"{names[0]} lies {exact}on another label, {names[1]} (IoU {overlaps[a, b]:.2f}): one object is there"
        yield Suggestion(
            Kind.DUPLICATE,
            one.image,
            int(one.rows[doubt]),
            None,
            None,
            float(overlaps[a, b]),
            why,
            int(one.rows[keep]),
        )


def _shares_candidate(one: Judged, keep: int, doubt: int) -> bool:
    """Whether the label kept stands for a candidate that the other one overlaps, and which has none of its own."""
    n, own = int(one.explained.candidate[keep]), int(one.explained.candidate[doubt])
    taken = own >= 0 and float(one.scores[own].max()) >= UNSEEN
    return n >= 0 and not taken and bool(one.explained.overlaps[doubt, n] >= SAME)


class Ranks(NamedTuple):
    """Objectness as a rank among all candidates: networks differ in how sure their RPN is."""

    sorted: Float[np.ndarray, " n"]

    def of(self, value: float) -> float:
        """The share of candidates that have less, from 0 to 1."""
        return float(np.searchsorted(self.sorted, value) / max(1, len(self.sorted)))


def _ranks(judged: list[Judged]) -> Ranks:
    return Ranks(np.sort(np.concatenate([np.zeros(0), *(one.evidence.objectness for one in judged)])))


def _box(box: Float[np.ndarray, " 4"]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2
