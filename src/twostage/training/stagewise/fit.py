"""The stages behind a tuned network: vectors of many regions, then an SVM and box regressors for each class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from twostage.models.stagewise.detector import Stagewise
from twostage.ops.deltas import encode
from twostage.training.stagewise.regions import Kept, Regions
from twostage.training.stagewise.ridge import LAMBDA, fit_ridge
from twostage.training.stagewise.svm import NEGATIVE, SvmSettings, fit_svm


@dataclass(frozen=True)
class FitSettings:
    """`pair` is the IoU above which a proposal learns to become the object: 0.6 for R-CNN, 0.5 for SPPnet.

    At most `pairs` of a class are learned from, drawn with `seed`. pool5 is scaled to a mean norm of `norm` before the
    regression, as R-CNN's code does, so that `strength` means the same for every network.
    """

    pair: float = 0.6
    pairs: int = 3000
    strength: float = LAMBDA
    norm: float = 20.0
    svm: SvmSettings = field(default_factory=SvmSettings)
    seed: int = 0


@torch.inference_mode()
def fit_stages(
    model: Stagewise,
    pictures: Kept[Tensor],
    regions: Sequence[Regions],
    names: Sequence[str],
    settings: FitSettings,
    after_image: Callable[[int, int], None] = lambda done, all: None,
) -> None:
    """Fill the model's SVMs and regressors from these images' regions; `regions[i]` are those of `pictures[i]`."""
    classes = range(len(names))
    seen = [one for one in regions if len(one.boxes)]
    fc7s: list[np.ndarray] = []
    pool5s: list[list[np.ndarray]] = [[] for _ in classes]
    deltas: list[list[np.ndarray]] = [[] for _ in classes]
    rng = np.random.default_rng(settings.seed)
    enough = -(-settings.pairs // max(len(regions), 1)) * 4  # of an image, lest all be held
    for index, one in enumerate(regions):
        if len(one.boxes):
            pool5, fc7 = (x.float().cpu().numpy() for x in model.vectors(pictures[index], torch.from_numpy(one.boxes)))
            fc7s.append(fc7)
            label = np.where(one.truth >= 0, one.labels[np.maximum(one.truth, 0)] if len(one.labels) else -1, -1)
            for k in classes:
                pairs = np.flatnonzero((label == k) & (one.best > settings.pair))
                if len(pairs) > enough:
                    pairs = rng.choice(pairs, enough, replace=False)
                pool5s[k].append(pool5[pairs])
                deltas[k].append(_deltas(one, pairs))
        after_image(index + 1, len(regions))
    for k in classes:
        # One class after the other: the vectors of all classes' negatives are nearly the same.
        positives = _all([fc7[: one.objects][one.labels == k] for fc7, one in zip(fc7s, seen, strict=True)])
        negatives = [fc7[one.overlap[:, k] < NEGATIVE] for fc7, one in zip(fc7s, seen, strict=True)]
        svm = fit_svm(positives, negatives, settings.svm, name=names[k], seed=settings.seed)
        model.svms.weight[k], model.svms.bias[k] = torch.from_numpy(svm[0]), svm[1]
        x, y = _all(pool5s[k]), _all(deltas[k])
        drawn = np.sort(rng.permutation(len(x))[: settings.pairs])
        x, y = x[drawn], y[drawn]
        scale = settings.norm / max(float(np.linalg.norm(x, axis=1).mean()), 1e-12) if len(x) else 1.0
        weight, offset = fit_ridge(x * np.float32(scale), y, strength=settings.strength)
        model.ridges.weight[4 * k : 4 * k + 4] = torch.from_numpy(weight * np.float32(scale))
        model.ridges.bias[4 * k : 4 * k + 4] = torch.from_numpy(offset)


def _deltas(regions: Regions, rows: np.ndarray) -> Float32[np.ndarray, "n 4"]:
    """What leads from proposals to their objects."""
    goals = torch.from_numpy(regions.boxes[: regions.objects][regions.truth[rows]])
    return encode(goals, torch.from_numpy(regions.boxes[rows])).numpy()


def _all(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
