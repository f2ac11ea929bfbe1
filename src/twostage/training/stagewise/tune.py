"""Training a network as a classifier of regions: the backbone's pretraining, R-CNN's and SPPnet's fine-tuning.

(R-CNN, section 2.3 and appendix B; SPPnet, section 4.2.)
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from twostage.data.randomness import generator, mix
from twostage.device import arithmetic
from twostage.errors import DataError, TwostageError
from twostage.inference.precision import choose_precision
from twostage.training.optimiser import can_fuse
from twostage.training.stagewise.regions import Regions

log = logging.getLogger("twostage.training")

Inputs = Callable[[int, Tensor, bool], Tensor]
"""The input of the classifier for regions of an image: its index, boxes Float[p 4], and whether it is mirrored."""


@dataclass(frozen=True)
class TuneSettings:
    """R-CNN's batch of 32 positive windows (IoU from `positive`) and 96 others (IoU in [low, high) of `negative`).

    The paper draws each window from any image; here the windows of a step are from `images` images, so that one decoded
    image serves several of them; half of the images are mirrored. Training ends after `steps`, or after `minutes` where
    they are None. The optimizer is AdamW with a cosine schedule, for small networks trained from scratch; the papers'
    SGD at 0.001 suits networks pretrained on ImageNet.
    """

    minutes: float = 1.0
    steps: int | None = None
    positives: int = 32
    negatives: int = 96
    images: int = 16
    positive: float = 0.5
    negative: tuple[float, float] = (0.0, 0.5)
    lr: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0


def tune(
    classifier: nn.Module,
    parameters: Sequence[nn.Parameter],
    inputs: Inputs,
    regions: Sequence[Regions],
    settings: TuneSettings,
) -> int:
    """Train `classifier`, from `inputs` to K + 1 logits, with cross-entropy; returns the number of steps.

    The caller sets its mode. Raises DataError where no image has a positive region, TwostageError when the loss is not
    finite.
    """
    positives = [np.flatnonzero(r.best >= settings.positive) for r in regions]
    low, high = settings.negative
    negatives = [np.flatnonzero((r.best >= low) & (r.best < high)) for r in regions]
    with_objects = np.array([i for i, rows in enumerate(positives) if len(rows)], dtype=np.int64)
    if not len(with_objects):
        raise DataError("No image has an object to learn from. Give images with annotated objects of the classes.")
    optimizer = AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=can_fuse(parameters))
    device = parameters[0].device
    precision = choose_precision(device, "auto")
    started, step, share, last = time.perf_counter(), 0, 0.0, 0.0
    while share < 1:
        for group in optimizer.param_groups:
            warmup = min(1.0, (step + 1) / 20)
            group["lr"] = settings.lr * warmup * 0.5 * (1 + math.cos(math.pi * share))
        rng = generator(settings.seed, step)
        torch.manual_seed(mix(settings.seed, step, 1))  # dropout's
        chosen = rng.choice(with_objects, settings.images, replace=len(with_objects) < settings.images)
        parts, labels = [], []
        for index in chosen.tolist():
            rows = np.concatenate(
                [
                    _some(positives[index], settings.positives // settings.images, rng),
                    _some(negatives[index], settings.negatives // settings.images, rng),
                ]
            )
            parts.append(inputs(index, torch.from_numpy(regions[index].boxes[rows]), bool(rng.random() < 0.5)))
            labels.append(labels_of(regions[index], rows, settings.positive))
        batch, targets = torch.cat(parts), torch.from_numpy(np.concatenate(labels))
        with arithmetic(batch.device, precision):
            logits = classifier(batch)
        loss = cross_entropy(logits.float(), targets.to(batch.device))
        last = float(loss.detach())
        if not math.isfinite(last):
            raise TwostageError(f"Fine-tuning stopped at step {step}: the loss is not finite ({last}).")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        step += 1
        share = step / settings.steps if settings.steps else (time.perf_counter() - started) / (60 * settings.minutes)
    log.info("fine-tuned for %d steps: the last loss is %.3f", step, last)
    return step


def labels_of(regions: Regions, rows: np.ndarray, positive: float) -> np.ndarray:
    """Classes of regions, background 0."""
    truth = regions.truth[rows]
    known = regions.labels[np.maximum(truth, 0)] + 1 if len(regions.labels) else np.zeros(len(rows), np.int64)
    return np.where((regions.best[rows] >= positive) & (truth >= 0), known, 0)


def _some(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` of the rows, drawn."""
    return rows if len(rows) <= count else rng.choice(rows, count, replace=False)
