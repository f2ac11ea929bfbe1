"""Faults planted into the labels of a data set, so that an audit can be scored: which rows are wrong is known."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int64

from twostage.data.dataset import Dataset, without_objects
from twostage.data.randomness import generator

SHARE = 0.05  # of all objects, for each kind
SHIFT = 1 / 3  # of the box's width or height


@dataclass(frozen=True)
class Planted:
    """The data set with faults. `wrong_class` and `loose_box` are rows of it; the objects that were removed have an
    image and a box each."""

    dataset: Dataset
    wrong_class: Int64[np.ndarray, " w"]
    loose_box: Int64[np.ndarray, " l"]
    removed_images: Int64[np.ndarray, " r"]
    removed_boxes: Float[np.ndarray, "r 4"]


def plant(dataset: Dataset, seed: int, share: float = SHARE) -> Planted:
    """Of all objects a share is removed, as many get another class, and as many are shifted by a third of a side.

    No object has two faults. A class is changed to one of the others, each as likely, and not where there is one class;
    a box is shifted left, right, up or down, where the image has room for it.
    """
    random = generator(seed, len(dataset.labels))
    count = round(share * len(dataset.labels))
    removed, wrong, loose = random.permutation(len(dataset.labels))[: 3 * count].reshape(3, count)
    labels, boxes = dataset.labels.copy(), dataset.boxes.copy()
    if len(dataset.names) == 1:
        wrong = wrong[:0]
    labels[wrong] = (labels[wrong] + random.integers(1, len(dataset.names), len(wrong))) % len(dataset.names)
    image = dataset.image_indices
    for row in loose.tolist():
        height, width = dataset.sizes[image[row]].tolist()
        boxes[row] = _shifted(boxes[row], width, height, random)
    changed = replace(dataset, labels=labels, boxes=boxes, fields=None)
    kept = np.setdiff1d(np.arange(len(labels)), removed)
    return Planted(
        without_objects(changed, removed.tolist()),
        np.flatnonzero(np.isin(kept, wrong)),
        np.flatnonzero(np.isin(kept, loose)),
        image[removed],
        dataset.boxes[removed],
    )


def _shifted(
    box: Float[np.ndarray, " 4"], width: int, height: int, random: np.random.Generator
) -> Float[np.ndarray, " 4"]:
    """The box moved by a third of its side in a random direction in which it stays in the image; else cut there."""
    across, down = SHIFT * (box[2] - box[0]), SHIFT * (box[3] - box[1])
    ways = np.array([(across, 0), (-across, 0), (0, down), (0, -down)])
    moved = np.concatenate([box[:2] + ways, box[2:] + ways], axis=1)
    limits = np.array([width, height, width, height])
    inside = ((moved >= 0) & (moved <= limits)).all(axis=1)
    chosen = moved[random.choice(np.flatnonzero(inside) if inside.any() else np.arange(4))]
    return np.clip(chosen, 0, limits).astype(np.float32)
