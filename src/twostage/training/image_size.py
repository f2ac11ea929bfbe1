"""The image size of a training from a small pretrained network: larger than the model's where objects would be small.

Features of ImageNet are of large objects, and the finest map has stride 4: see `benchmarks/results/tried.md`.
"""

import logging
import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64

from twostage.data.census import resized_sides
from twostage.data.dataset import Dataset
from twostage.models.component import leaves
from twostage.models.config import DetectorConfig, StagewiseConfig
from twostage.models.configure import configure
from twostage.models.image import ImageConfig
from twostage.models.zoo import named
from twostage.training.options import TrainOptions
from twostage.training.recipe import recipe_name
from twostage.weights.file import KEY, load_tensors, read_card
from twostage.weights.named import find_weights

log = logging.getLogger("twostage.training")

LEAST = 24.0  # pixels, of the median of the square roots of the objects' areas
MOST = 640  # pixels
STEP = 32  # pixels, the stride of the last map
ENOUGH = 250  # steps of the least batch; with fewer the model's size gives a higher AP: `benchmarks/results/tried.md`
_FIXED_BY = {"image.size", "image.max_size", "anchors.sizes"}  # anchors are pixels of the resized image


def with_image_size(options: TrainOptions, train: Dataset) -> TrainOptions:
    """The options with the `suitable_size` for a training split.

    As they are where they fix the size, where the run begins from a detector of the same model, which has its own, from
    another network (`--backbone`) or from none, and where it follows another recipe than `finetune_small`.
    """
    if recipe_name(options) != "finetune_small" or options.backbone is not None or _of_same_model(options):
        return options
    config = configure(named(options.model), options.given_fields)
    size = suitable_size(config, options.given_fields, train)
    # The model's too, so that parts of the images are trained on at the same.
    return options if size is None else replace(options, size=size)


def model_size(options: TrainOptions) -> int | None:
    """The size of the model that the options name, with its fields; None where it resizes by another rule."""
    image = configure(named(options.model), options.given_fields).image
    return image.size if isinstance(image, ImageConfig) else None


def log_larger_size(options: TrainOptions, size: int, train: Dataset) -> None:
    """Why images are larger than the options' model has them."""
    image = configure(named(options.model), options.given_fields).image
    assert isinstance(image, ImageConfig)
    larger, median = size / image.size, float(np.median(_sides(image, train)))
    log.info(
        "The median object has a side of %.0f px at the model's size %d, and %.0f px at %d, to which images are "
        "resized, with %.1f times as many pixels. --size sets another.",
        *(median, image.size, larger * median, size, larger**2),
    )


def suitable_size(config: DetectorConfig, given: Collection[str], train: Dataset) -> int | None:
    """The shorter side of images at which the median object has `LEAST` pixels: at least the model's, at most `MOST`, a
    multiple of `STEP` between them, and no larger than anchors allow: of every class 90 % of the objects are so small
    that an anchor can overlap them with an IoU of 0.5, or the size stays.

    None where it is fixed, by the names of the fields that are `given` or by a model that resizes by another rule.
    """
    image = config.image
    fixed = any(leaf.path in _FIXED_BY and leaf.names & set(given) for leaf in leaves(config))
    if fixed or not isinstance(image, ImageConfig):
        return None
    sides = _sides(image, train)
    if not len(sides):
        return image.size
    wanted = math.ceil(LEAST / float(np.median(sides)) * image.size / STEP) * STEP
    limit = min(_reach(config) / _large(sides, train) * image.size, MOST)
    return max(image.size, min(wanted, math.floor(limit / STEP) * STEP))


def _sides(image: ImageConfig, train: Dataset) -> Float64[np.ndarray, " b"]:
    """The square roots of the areas of the objects that are trained on, in resized images."""
    return np.sqrt(resized_sides(train, image.resizing)[_counted(train)].prod(axis=1))


def _counted(train: Dataset) -> Bool[np.ndarray, " _"]:
    return ~(train.crowd | train.difficult)


def _large(sides: Float64[np.ndarray, " b"], train: Dataset) -> float:
    """The side that 90 % of the objects of a class do not exceed, of the class of the largest objects."""
    labels = train.labels[_counted(train)]
    return max(float(np.quantile(sides[labels == label], 0.9)) for label in np.unique(labels))


def _reach(config: DetectorConfig) -> float:
    """The side of the largest square that an anchor overlaps with an IoU of 0.5."""
    if isinstance(config, StagewiseConfig) or config.anchors is None:
        return math.inf
    return math.sqrt(2) * max(map(max, config.anchors.sizes))


def _of_same_model(options: TrainOptions) -> bool:
    """Whether the initial weights are those of a detector of the same model, or there are none."""
    if options.initial_weights is None:
        return True
    path = find_weights(options.initial_weights, offline=options.offline)
    metadata, _ = load_tensors(path)
    return KEY in metadata and read_card(path, metadata[KEY]).model == options.model
