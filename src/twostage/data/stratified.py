"""An order of images of which every k-th is a sample with about the same classes: folds, and shares of a data set."""

import numpy as np
from jaxtyping import Int64

from twostage.data.dataset import Dataset
from twostage.data.randomness import generator


def stratified_order(dataset: Dataset, seed: int) -> Int64[np.ndarray, " m"]:
    """All images: those of the rarest class first, within a class at random, those without objects last.

    An image counts for the rarest of its classes, the one in the fewest images.
    """
    classes = len(dataset.names)
    pairs = np.unique(dataset.image_indices * classes + dataset.labels)
    images, labels = pairs // classes, pairs % classes
    common = np.bincount(labels, minlength=classes)  # images of each class
    rank = np.empty(classes, dtype=np.int64)
    rank[np.argsort(common, kind="stable")] = np.arange(classes)
    rarest = np.full(len(dataset), classes)
    np.minimum.at(rarest, images, rank[labels])
    shuffled = generator(seed).permutation(len(dataset))
    return shuffled[np.argsort(rarest[shuffled], kind="stable")]
