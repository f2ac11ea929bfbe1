"""Regions of a split with what they overlap: from these windows are drawn, SVMs and regressors learned.

Letters: p regions of an image, g its objects, K classes.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from twostage.data.dataset import Dataset
from twostage.data.proposals import ProposalSet
from twostage.ops.boxes import iou

T = TypeVar("T")

_HELD = 1 << 30


class Regions(NamedTuple):
    """The objects of an image and behind them its proposals; the first `objects` are those of the ground truth.

    `best` is the largest IoU with an object and `truth` that object's index, -1 without any; `overlap` the largest IoU
    with an object of each class.
    """

    boxes: Float32[np.ndarray, "p 4"]
    objects: int
    labels: Int64[np.ndarray, " g"]
    best: Float32[np.ndarray, " p"]
    truth: Int64[np.ndarray, " p"]
    overlap: Float32[np.ndarray, "p k"]


def regions_of(dataset: Dataset, index: int, proposals: ProposalSet, count: int) -> Regions:
    """An image's objects, crowds and difficult ones left out, and its best `count` proposals."""
    objects = dataset.objects(index)
    learn = ~(objects.crowd | objects.difficult)
    truth, labels = objects.boxes[learn], objects.labels[learn]
    boxes = np.concatenate([truth, proposals.best(index, count)[0]]).astype(np.float32)
    overlap = np.zeros((len(boxes), len(dataset.names)), dtype=np.float32)
    best, index_of = np.zeros(len(boxes), np.float32), np.full(len(boxes), -1, np.int64)
    if len(truth) and len(boxes):
        pairs = iou(torch.from_numpy(boxes), torch.from_numpy(np.ascontiguousarray(truth))).numpy()
        best, index_of = pairs.max(axis=1), pairs.argmax(axis=1)
        np.maximum.at(overlap.T, labels, pairs.T)
    return Regions(boxes, len(truth), labels, best, index_of, overlap)


class Kept(Generic[T]):
    """What `make` gives for an image, the last ones used kept in memory up to `held` bytes."""

    def __init__(self, make: Callable[[int], T], size: Callable[[T], int], held: int = _HELD) -> None:
        self.make, self.size, self.held = make, size, held
        self._kept: OrderedDict[int, T] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, index: int) -> T:
        """Made anew, or as it was kept."""
        if index not in self._kept:
            self._kept[index] = self.make(index)
            self._bytes += self.size(self._kept[index])
            while self._bytes > self.held and len(self._kept) > 1:
                self._bytes -= self.size(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(index)
        return self._kept[index]


def pictures_of(dataset: Dataset) -> Kept[Tensor]:
    """The decoded pictures of a split: UInt8[3 h w], RGB."""
    return Kept(lambda index: torch.from_numpy(dataset.image(index)).permute(2, 0, 1), lambda image: image.numel())
