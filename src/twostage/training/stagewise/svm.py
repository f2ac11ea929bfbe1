"""One linear SVM per class with hard negative mining (R-CNN, section 2.3 and appendix B; Felzenszwalb et al. 2010).

Positives are the ground-truth boxes, negatives the regions whose IoU with every object of the class is below 0.3;
others are ignored. There are too many negatives to train on all of them: image by image, those inside the margin of the
current SVM join its training set.
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

log = logging.getLogger("twostage.training")

NEGATIVE = 0.3  # IoU with the objects of a class below which a region is a negative


@dataclass(frozen=True)
class SvmSettings:
    """R-CNN's (`rcnn_train.m`): vectors scaled to a mean norm of 20, C of 0.001, positives weighted 2, a bias of 10.

    Negatives with a score above `hard` are added, those below `easy` removed; the SVM is fitted again after every
    `fresh` new ones.
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
    """The normal and the offset of the hyperplane: `x @ w + b` is above 0 for the class.

    `negatives` has one array per image. A class without positives is logged, and every vector gets -1. Raises
    MissingError without the extra `lineage`.
    """
    if not len(positives):
        log.warning("%s: no object in these images: its SVM cannot be trained, and the class is never detected.", name)
        return np.zeros(positives.shape[1], np.float32), -1.0
    total = [positives, *negatives]
    scale = settings.norm / max(np.concatenate([np.linalg.norm(x, axis=1) for x in total]).mean(), 1e-12)
    positives = positives * scale
    first = [x[:20] for x in negatives]  # for the first fit
    cached = np.concatenate([np.zeros((0, positives.shape[1]), np.float32), *first]) * scale
    weight, offset = _fit(positives, cached, settings, seed)
    for turn in range(settings.rounds):
        fresh: list[np.ndarray] = []
        for number, of_image in enumerate(negatives):
            scaled = of_image * scale
            fresh.append(scaled[scaled @ weight + offset > settings.hard])
            last = number == len(negatives) - 1
            count = sum(map(len, fresh))
            if count >= settings.fresh or (last and count):
                cached = np.unique(np.concatenate([cached, *fresh]), axis=0)
                weight, offset = _fit(positives, cached, settings, seed)
                # Without easy ones, or all negatives would be cached in the end.
                cached = cached[cached @ weight + offset > settings.easy]
                fresh = []
        log.debug("%s: round %d, %d positives, %d negatives cached", name, turn + 1, len(positives), len(cached))
    return (weight * scale).astype(np.float32), float(offset)


def _fit(positives: np.ndarray, negatives: np.ndarray, settings: SvmSettings, seed: int) -> tuple[np.ndarray, float]:
    if not len(negatives):
        return np.zeros(positives.shape[1]), 0.0
    svm = linear_svc()(
        C=settings.c,
        loss="hinge",
        class_weight={1: settings.positive_weight},
        intercept_scaling=settings.bias,
        random_state=seed,
        max_iter=5000,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # liblinear reports a hinge loss that stops just before its tolerance
        svm.fit(np.concatenate([positives, negatives]), np.repeat([1, 0], [len(positives), len(negatives)]))
    return svm.coef_[0], float(svm.intercept_[0])


def linear_svc() -> Any:
    """scikit-learn's class. Raises MissingError without the extra `lineage`."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError:
        raise MissingError(f"The SVMs of R-CNN and SPPnet need scikit-learn: {INSTALL}") from None
    return LinearSVC
