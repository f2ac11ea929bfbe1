"""What comes more often, or besides, in training: images of rare classes, and objects of other images."""

import logging

import numpy as np
from jaxtyping import Float64

from twostage.data.dataset import Dataset
from twostage.data.rare_classes import repeat_factors
from twostage.errors import UsageError
from twostage.models.build import Model
from twostage.models.config import TwoStageConfig
from twostage.models.two_stage import TwoStage
from twostage.training.options import TrainOptions
from twostage.training.recipe import Recipe

log = logging.getLogger("twostage.training")


def require_pasting(options: TrainOptions, recipe: Recipe, model: Model, train: Dataset) -> None:
    """Raises UsageError where objects are to be pasted and cannot be."""
    if not recipe.copy_paste:
        return
    semantic = model.config.semantic if isinstance(model.config, TwoStageConfig) else None
    if options.proposals is not None or (isinstance(model, TwoStage) and model.rpn is None):
        raise UsageError("copy_paste: proposals computed before do not have the pasted objects: leave one of them out")
    if semantic is not None and semantic.has_branch:
        raise UsageError("copy_paste: the maps of stuff do not have the pasted objects: leave it out")
    if train.masks is None:
        raise UsageError(f"copy_paste: {train.root} has no masks to cut objects out by: leave it out")


def repeats_of(train: Dataset, threshold: float) -> Float64[np.ndarray, " m"] | None:
    """How often each image comes in an epoch; None where that is once, without rare classes."""
    factors = repeat_factors(train, threshold)
    often = factors > 1
    if not often.any():
        return None
    log.info("Rare classes: %d of %d images come up to %.1f times an epoch.", often.sum(), len(train), factors.max())
    return factors
