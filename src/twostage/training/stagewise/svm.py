"""One linear SVM a class, with hard negatives (R-CNN, sections 2.3 and appendix B; Felzenszwalb et al. 2010).

Positives are the ground truth's boxes, negatives the windows that overlap the class's objects by less than 0.3; what
lies between is left out. There are too many negatives to learn from all: those of one image after the other that the
machine so far does not put safely on their side join what it learns from.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from twostage.errors import MissingError
from twostage.models.proposals.selective_search import INSTALL

log = logging.getLogger("twostage.lineage")

NEGATIVE = 0.3  # IoU below which a window is none of the class


@dataclass(frozen=True)
class SvmSettings:
    """R-CNN's (`rcnn_train.m`): vectors scaled to a mean norm of 20, C of 0.001, positives count twice, a bias of 10.

    Negatives with a score above `hard` join, those below `easy` go; the machine learns anew whenever `fresh` have come.
    """

    norm: float = 20.0
    c: float = 1e-3
    positive_weight: float = 2.0
    bias: float = 10.0
    hard: float = -1.0001
    easy: float = -1.2
    fresh: int = 2000
    rounds: int = 2  # passes over the images


def fit_svm(
    positives: Float[np.ndarray, "n f"],
    negatives: Sequence[Float[np.ndarray, "_ f"]],
    settings: SvmSettings,
    *,
    name: str,
    seed: int = 0,
) -> tuple[Float32[np.ndarray, " f"], float]:
    """The hyperplane and its offset: `x @ w + b` is above 0 for the class.

    `negatives` are those of each image. A class without positives is said, and its hyperplane puts everything on the
    other side, at -1. Raises MissingError without the extra `lineage`.
    """
    if not len(positives):
        log.warning("%s: no object in these images, so there is no SVM for it, and none will be found.", name)
        return np.zeros(positives.shape[1], np.float32), -1.0
    total = [positives, *negatives]
    scale = settings.norm / max(np.concatenate([np.linalg.norm(x, axis=1) for x in total]).mean(), 1e-12)
    positives = positives * scale
    first = [x[:20] for x in negatives]  # something to begin with
    kept = np.concatenate([np.zeros((0, positives.shape[1]), np.float32), *first]) * scale
    weight, offset = _fit(positives, kept, settings, seed)
    for turn in range(settings.rounds):
        fresh: list[np.ndarray] = []
        for number, of_image in enumerate(negatives):
            scaled = of_image * scale
            fresh.append(scaled[scaled @ weight + offset > settings.hard])
            last = number == len(negatives) - 1
            if _count(fresh) >= settings.fresh or (last and _count(fresh)):
                kept = np.unique(np.concatenate([kept, *fresh]), axis=0)
                weight, offset = _fit(positives, kept, settings, seed)
                # Easy ones go, or the cache would become all of them.
                kept = kept[kept @ weight + offset > settings.easy]
                fresh = []
        log.debug("%s: round %d, %d positives, %d negatives kept", name, turn + 1, len(positives), len(kept))
    return (weight * scale).astype(np.float32), float(offset)


def _count(parts: Sequence[np.ndarray]) -> int:
    return sum(len(part) for part in parts)


def _fit(positives: np.ndarray, negatives: np.ndarray, settings: SvmSettings, seed: int) -> tuple[np.ndarray, float]:
    if not len(negatives):
        return np.zeros(positives.shape[1]), 0.0
    machine = linear_svc()(
        C=settings.c,
        loss="hinge",
        class_weight={1: settings.positive_weight},
        intercept_scaling=settings.bias,
        random_state=seed,
        max_iter=5000,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hinge losses end a hair's breadth from the optimum
        machine.fit(np.concatenate([positives, negatives]), np.repeat([1, 0], [len(positives), len(negatives)]))
    return machine.coef_[0], float(machine.intercept_[0])


def linear_svc() -> Any:
    """scikit-learn's class. Raises MissingError without the extra `lineage`."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError:
        raise MissingError(f"The SVMs of R-CNN and SPPnet need scikit-learn: {INSTALL}") from None
    return LinearSVC
