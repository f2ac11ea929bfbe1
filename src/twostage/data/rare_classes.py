"""Repeat-factor sampling: images with rare classes come more than once an epoch (Gupta et al. 2019, "LVIS")."""

import numpy as np
from jaxtyping import Float64

from twostage.data.dataset import Dataset


def repeat_factors(dataset: Dataset, threshold: float) -> Float64[np.ndarray, " m"]:
    """How often each image comes in an epoch on average, at least 1.

    A class in the share f of the images has the factor max(1, sqrt(threshold / f)), an image the largest of its
    classes'. Crowds and difficult objects, which are not learned, do not count.
    """
    learned = ~(dataset.crowd | dataset.difficult)
    images, labels = dataset.image_indices[learned], dataset.labels[learned]
    pairs = np.unique(images * len(dataset.names) + labels)
    share = np.bincount(pairs % len(dataset.names), minlength=len(dataset.names)) / max(1, len(dataset))
    of_class = np.sqrt(threshold / np.maximum(share, 1e-12)).clip(min=1)
    factors = np.ones(len(dataset))
    np.maximum.at(factors, images, of_class[labels])
    return factors
