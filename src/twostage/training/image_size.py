"""The image size of a training from a small pretrained network: larger than the model's where objects would be small.

Features of ImageNet are of large objects, and the finest map has stride 4: see `benchmarks/results/tried.md`.
"""

import logging
import math
from dataclasses import replace

import numpy as np

from twostage.data.census import resized_sides
from twostage.data.dataset import Dataset
from twostage.models.build import with_backbone
from twostage.models.configure import configure
from twostage.models.image import ImageConfig
from twostage.models.zoo import named
from twostage.training.options import TrainOptions
from twostage.training.recipe import recipe_name
from twostage.weights.file import KEY, load_tensors
from twostage.weights.named import find_weights

log = logging.getLogger("twostage.training")

LEAST = 24.0  # pixels, of the median of the square roots of the objects' areas
MOST = 2.0  # times the size of the model
STEP = 32  # pixels, the stride of the last map
SIZES = {"size", "max_size", "image.size", "image.max_size"}  # fields that give a size


def with_image_size(options: TrainOptions, train: Dataset) -> TrainOptions:
    """The options with a size, the model's or so much more that the median object of a training split has `LEAST`
    pixels.

    As they are where they give a size, where the run begins from a detector, which has its own, and where it follows
    another recipe than `finetune_small`.
    """
    given = options.given_fields
    if recipe_name(options) != "finetune_small" or SIZES & set(given):
        return options
    image = configure(with_backbone(named(options.model), options.backbone), given).image
    if not isinstance(image, ImageConfig) or _of_detector(options):
        return options
    size = suitable_size(image, train)
    if size > image.size:
        log.info("Image size %d instead of %d, for small objects. A smaller --size is faster.", size, image.size)
    return replace(options, size=size)  # the model's too, so that parts of the images are trained on at the same


def suitable_size(image: ImageConfig, train: Dataset) -> int:
    """The shorter side of images at which the median object has `LEAST` pixels; at least `image.size`, at most `MOST`
    times that, and a multiple of `STEP` between them.
    """
    counted = ~(train.crowd | train.difficult)
    sides = np.sqrt(resized_sides(train, image.resizing)[counted].prod(axis=1))
    if not len(sides) or (median := float(np.median(sides))) >= LEAST:
        return image.size
    return math.ceil(image.size * min(MOST, LEAST / median) / STEP) * STEP


def _of_detector(options: TrainOptions) -> bool:
    """Whether the initial weights are those of a detector, or there are none."""
    if options.initial_weights is None:
        return True
    metadata, _ = load_tensors(find_weights(options.initial_weights, offline=options.offline))
    return KEY in metadata
