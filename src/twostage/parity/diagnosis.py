"""Which conventions explain that two sides differ: each is tried, and the one that brings them closest is kept."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from twostage.errors import TwostageError
from twostage.evaluation.results import Results
from twostage.inference.predictor import make_batch
from twostage.models.build import Model
from twostage.models.config import StagewiseConfig
from twostage.models.regions.pooling import Maps
from twostage.parity.agreement import FLOAT32, Agreement, Tolerance, agreement
from twostage.parity.conventions import Convention, conventions
from twostage.parity.variants import Pixels, Variant, detect, detect_from

MOST = 3  # conventions that are looked for together
CLOSER = 0.5  # a convention is kept where the error is at most this part of that without it


class Diagnosis(NamedTuple):
    """What of the other side explains the difference, how far apart the sides are, and how far with that."""

    found: tuple[Convention, ...]
    before: Agreement
    after: Agreement


def diagnose(
    variant: Variant, images: Sequence[Pixels], expected: Results, tolerance: Tolerance = FLOAT32
) -> Diagnosis:
    """The conventions of the other side, whose detections in the images are `expected`.

    They are looked for in the image with the largest error, one after the other, and confirmed in all.
    """
    model = variant.build()
    post, ours = model.config.postprocess, detect(model, images)
    before = agreement(expected, ours, len(images), post, tolerance)
    apart = [agreement(only(expected, k), only(ours, k), 1, post, tolerance).error for k in range(len(images))]
    worst = int(np.argmax(apart))
    some, own = [images[worst]], only(expected, worst)
    found: list[Convention] = []
    while len(found) < MOST:
        model = variant.build()
        now = compare(model, some, own, tolerance)
        if now.same(tolerance):
            break
        best = _closest(variant, model, some, own, now.error * CLOSER, tolerance)
        if best is None or best.name in [each.name for each in found]:
            break
        variant = best.change(variant)
        found.append(best)
    after = compare(variant.build(), images, expected, tolerance) if found else before
    return Diagnosis(tuple(found), before, after)


def compare(
    model: Model, images: Sequence[Pixels], expected: Results, tolerance: Tolerance, batch: int = 1
) -> Agreement:
    """How far a model finds what is expected, so many images on a canvas."""
    return agreement(expected, detect(model, images, batch), len(images), model.config.postprocess, tolerance)


def only(results: Results, image: int) -> Results:
    """The detections of one image, as those of the first."""
    own = np.flatnonzero(results.images == image)
    masks = None if results.masks is None else [results.masks[i] for i in own]
    return Results(own * 0, results.boxes[own], results.scores[own], results.class_ids[own], masks)


def _closest(
    variant: Variant, model: Model, images: Sequence[Pixels], expected: Results, least: float, tolerance: Tolerance
) -> Convention | None:
    """The first convention with which nothing differs, or that with the least error, if it is at most `least`."""
    maps = None if isinstance(variant.config, StagewiseConfig) else _maps(model, images)
    best = None
    for each in conventions(variant):
        try:
            other = each.change(variant).build()
        except TwostageError:  # a combination that no detector can have
            continue
        found = detect(other, images) if maps is None or each.in_features else detect_from(other, maps, images)
        now = agreement(expected, found, len(images), other.config.postprocess, tolerance)
        if now.error < least:
            best, least = each, now.error
            if now.same(tolerance):
                break
    return best


@torch.inference_mode()
def _maps(model: Model, images: Sequence[Pixels]) -> list[Maps]:
    return [model.features(make_batch([image], model.config)) for image in images]
