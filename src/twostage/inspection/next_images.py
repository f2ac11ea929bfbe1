"""Which unlabelled images are most worth labelling: those that the detector is least certain about.

For a detection the uncertainty is that of its class, the gap between the best two of the probabilities (margin
sampling), its change in the mirror image, and a proposal the RPN is sure of and the head calls background. An image's
worth is the sum over its candidates, as in Brust, Käding and Denzler 2019: crowded images teach more.
Images are then taken one by one, and what resembles one that was taken is worth less.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from twostage.inspection.evidence import SURE, Evidence

SEEN = 0.05  # foreground probability from which on a candidate counts
ALIKE = 0.5  # share of its worth that an image loses beside one taken with the same classes and numbers


@dataclass(frozen=True)
class NextImage:
    """An image worth labelling: its index, its worth, and what it is made of."""

    image: int
    worth: float
    detections: int
    why: str

    def to_dict(self, name: str) -> dict[str, Any]:
        """Plain values: {"file", "worth", "detections", "why"}."""
        return {"file": name, "worth": round(self.worth, 4), "detections": self.detections, "why": self.why}


def next_images(evidence: Mapping[int, Evidence], count: int) -> list[NextImage]:
    """At most so many images, the most worth labelling first; `evidence` is about images without labels."""
    images = [_worth(image, one) for image, one in sorted(evidence.items())]
    if not images:
        return []
    worth = np.array([one.worth for one in images])
    signatures = np.stack([_signature(evidence[one.image]) for one in images])
    nearest, left = np.zeros(len(images)), np.ones(len(images), dtype=bool)
    chosen: list[NextImage] = []
    for _ in range(min(count, len(images))):
        best = int(np.where(left, worth * (1 - ALIKE * nearest), -np.inf).argmax())
        left[best] = False
        chosen.append(images[best])
        nearest = np.maximum(nearest, _nearness(signatures, signatures[best]))
    return chosen


def _worth(image: int, one: Evidence) -> NextImage:
    scores = (one.scores + one.mirrored) / 2
    foreground = scores.max(axis=1, initial=0.0)
    seen = foreground >= SEEN
    background = (1 - scores.sum(axis=1)).clip(0, 1)
    ordered = np.sort(np.concatenate([scores, background[:, None]], axis=1), axis=1)
    unsure = 1 - (ordered[:, -1] - ordered[:, -2])
    views = np.abs(one.scores - one.mirrored).max(axis=1, initial=0.0)
    unsure, views = unsure[seen].sum(), views[seen].sum()
    stages = one.objectness[~seen & (one.objectness >= SURE)].sum()
    why = f"unsure classes {unsure:.1f}, views that differ {views:.1f}, RPN sure and head not {stages:.1f}"
    return NextImage(image, float(unsure + views + stages), int((foreground >= SURE).sum()), why)


def _signature(one: Evidence) -> Float[np.ndarray, " k"]:
    """What is in an image: the expected number of objects of each class."""
    return ((one.scores + one.mirrored) / 2).sum(axis=0)


def _nearness(every: Float[np.ndarray, "m k"], one: Float[np.ndarray, " k"]) -> Float[np.ndarray, " m"]:
    """From 0 to 1, how much of each image's expected objects another image has too."""
    return np.minimum(every, one).sum(axis=1) / np.maximum(every, one).sum(axis=1).clip(min=1e-6)
