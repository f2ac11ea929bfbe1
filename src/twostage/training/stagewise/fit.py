"""The stages after fine-tuning: the vectors of many regions, then an SVM and box regressors per class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from twostage.data.batch import Batch, stack_images
from twostage.data.loader import scale_boxes
from twostage.models.stagewise import SVMHead
from twostage.models.two_stage import TwoStage
from twostage.ops.deltas import BoxCoder
from twostage.training.stagewise.regions import Cache, Regions
from twostage.training.stagewise.ridge import LAMBDA, fit_ridge
from twostage.training.stagewise.svm import NEGATIVE, SvmSettings, fit_svm


@dataclass(frozen=True)
class FitSettings:
    """`pair` is the IoU above which a proposal and its object are a training pair: 0.6 for R-CNN, 0.5 for SPPnet.

    At most `pairs` per class are used, drawn with `seed`. pool5 is scaled to a mean norm of `norm` before the
    regression, as in R-CNN's code, so that `strength` means the same for every network.
    """

    pair: float = 0.6
    pairs: int = 3000
    strength: float = LAMBDA
    norm: float = 20.0
    svm: SvmSettings = field(default_factory=SvmSettings)
    seed: int = 0


@torch.inference_mode()
def fit_stages(
    model: TwoStage,
    images: Cache[Tensor],
    regions: Sequence[Regions],
    names: Sequence[str],
    settings: FitSettings,
) -> None:
    """Fit the SVMs and regressors of the model's head to `regions[i]` of `images[i]`."""
    head = cast(SVMHead, model.head)
    classes = range(len(names))
    used = [one for one in regions if len(one.boxes)]
    fc7s: list[np.ndarray] = []
    pool5s: list[list[np.ndarray]] = [[] for _ in classes]
    deltas: list[list[np.ndarray]] = [[] for _ in classes]
    rng = np.random.default_rng(settings.seed)
    enough = -(-settings.pairs // max(len(regions), 1)) * 4  # per image, to bound the memory
    for index, one in enumerate(regions):
        if not len(one.boxes):
            continue
        pool5, fc7 = (x.float().cpu().numpy() for x in vectors(model, images[index], torch.from_numpy(one.boxes)))
        fc7s.append(fc7)
        label = np.where(one.truth >= 0, one.labels[np.maximum(one.truth, 0)] if len(one.labels) else -1, -1)
        for k in classes:
            pairs = np.flatnonzero((label == k) & (one.best > settings.pair))
            if len(pairs) > enough:
                pairs = rng.choice(pairs, enough, replace=False)
            pool5s[k].append(pool5[pairs])
            deltas[k].append(_deltas(one, pairs))
    for k in classes:
        # Class by class: the negatives of all classes are nearly the same vectors.
        positives = _all([fc7[: one.objects][one.labels == k] for fc7, one in zip(fc7s, used, strict=True)])
        negatives = [fc7[one.overlap[:, k] < NEGATIVE] for fc7, one in zip(fc7s, used, strict=True)]
        svm = fit_svm(positives, negatives, settings.svm, name=names[k], seed=settings.seed)
        head.svms.weight[k], head.svms.bias[k] = torch.from_numpy(svm[0]), svm[1]
        x, y = _all(pool5s[k]), _all(deltas[k])
        drawn = np.sort(rng.permutation(len(x))[: settings.pairs])
        x, y = x[drawn], y[drawn]
        scale = settings.norm / max(float(np.linalg.norm(x, axis=1).mean()), 1e-12) if len(x) else 1.0
        weight, offset = fit_ridge(x * np.float32(scale), y, strength=settings.strength)
        head.ridges.weight[4 * k : 4 * k + 4] = torch.from_numpy(weight * np.float32(scale))
        head.ridges.bias[4 * k : 4 * k + 4] = torch.from_numpy(offset)


def batch_of(model: TwoStage, image: Tensor) -> Batch:
    """An image (UInt8[3 h w], RGB) as the model takes it, on the model's device."""
    rule = model.config.image
    return stack_images([rule.resizing(image)], divisor=rule.divisor).to(model.normalize.pixel_mean.device)


def vectors(
    model: TwoStage, image: Tensor, boxes: Float[Tensor, "p 4"]
) -> tuple[Float[Tensor, "p d"], Float[Tensor, "p f"]]:
    """pool5 and fc7 of regions of an image (UInt8[3 h w], RGB), boxes on its pixels."""
    head, batch = cast(SVMHead, model.head), batch_of(model, image)
    height, width = batch.sizes[0].tolist()
    placed = scale_boxes(boxes, (image.shape[1], image.shape[2]), (height, width))
    pool5, fc7 = head.vectors(head.fuse_features(model.features(batch)), placed.to(batch.images.device)[None])
    return pool5[0], fc7[0]


def _deltas(regions: Regions, rows: np.ndarray) -> Float32[np.ndarray, "n 4"]:
    """The deltas from proposals to their objects."""
    targets = torch.from_numpy(regions.boxes[: regions.objects][regions.truth[rows]])
    return BoxCoder().encode(targets, torch.from_numpy(regions.boxes[rows])).numpy()


def _all(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
