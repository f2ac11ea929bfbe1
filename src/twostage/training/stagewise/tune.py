"""A network as a classifier of regions: what R-CNN and SPPnet are tuned as, and what a backbone is first trained as.

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
from twostage.device import arithmetic, has_bf16
from twostage.errors import DataError, TwostageError
from twostage.training.stagewise.regions import Regions

log = logging.getLogger("twostage.lineage")

Inputs = Callable[[int, Tensor, bool], Tensor]
"""What the network is given of an image's regions: its index, boxes Float[p 4], and whether it is mirrored."""


@dataclass(frozen=True)
class TuneSettings:
    """R-CNN's batch of 32 positive windows (IoU from `positive`) and 96 others (IoU in [low, high) of `negative`).

    The paper draws each window from any image; here a step's windows are drawn from `images` images, which lets a
    decoded picture serve several of them; half of them are mirrored. `minutes` end the tuning, or `steps` where they
    are given. The optimizer is AdamW with a rate that falls to 0 as a cosine, for nets that begin small and know
    little; the papers' SGD at 0.001 suits nets of ImageNet alone.
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
    learner: nn.Module,
    parameters: Sequence[nn.Parameter],
    inputs: Inputs,
    regions: Sequence[Regions],
    settings: TuneSettings,
) -> int:
    """Let `learner`, which turns `inputs` into K + 1 logits, tell classes and background apart; the number of steps.

    The learner's mode is the caller's. Raises DataError where no image has a positive window, TwostageError when the
    loss is no number any more.
    """
    positives = [np.flatnonzero(r.best >= settings.positive) for r in regions]
    low, high = settings.negative
    negatives = [np.flatnonzero((r.best >= low) & (r.best < high)) for r in regions]
    with_objects = np.array([i for i, rows in enumerate(positives) if len(rows)], dtype=np.int64)
    if not len(with_objects):
        raise DataError("No image has an object to learn from: there is nothing to tell apart.")
    optimizer = AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=_fused(parameters))
    device = parameters[0].device
    precision = "bf16" if has_bf16(device) else "fp32"
    begun, step, share, last = time.perf_counter(), 0, 0.0, 0.0
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
        batch, goal = torch.cat(parts), torch.from_numpy(np.concatenate(labels))
        with arithmetic(batch.device, precision):
            logits = learner(batch)
        loss = cross_entropy(logits.float(), goal.to(batch.device))
        last = float(loss.detach())
        if not math.isfinite(last):
            raise TwostageError(f"Tuning yields no numbers any more at step {step}: the loss is {last}.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        step += 1
        share = step / settings.steps if settings.steps else (time.perf_counter() - begun) / (60 * settings.minutes)
    log.info("tuned for %d steps: the last loss is %.3f", step, last)
    return step


def labels_of(regions: Regions, rows: np.ndarray, positive: float) -> np.ndarray:
    """Classes of regions, background 0."""
    truth = regions.truth[rows]
    known = regions.labels[np.maximum(truth, 0)] + 1 if len(regions.labels) else np.zeros(len(rows), np.int64)
    return np.where((regions.best[rows] >= positive) & (truth >= 0), known, 0)


def _some(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` of them."""
    return rows if len(rows) <= count else rng.choice(rows, count, replace=False)


def _fused(parameters: Sequence[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for p in parameters)
