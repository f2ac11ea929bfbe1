"""Regions of the images of a split with their overlaps: the training set of fine-tuning, SVMs and regressors.

Letters: p regions and g objects of an image, K classes.
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

_LIMIT = 1 << 30  # bytes


class Regions(NamedTuple):
    """The ground-truth boxes of an image, `objects` in number, followed by its proposals.

    `best` is the largest IoU with an object and `truth` the index of that object, -1 without any; `overlap` is the
    largest IoU with an object of each class.
    """

    boxes: Float32[np.ndarray, "p 4"]
    objects: int
    labels: Int64[np.ndarray, " g"]
    best: Float32[np.ndarray, " p"]
    truth: Int64[np.ndarray, " p"]
    overlap: Float32[np.ndarray, "p k"]


def regions_of(dataset: Dataset, index: int, proposals: ProposalSet, count: int) -> Regions:
    """The objects of an image, without crowds and difficult ones, and its best `count` proposals."""
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


class Cache(Generic[T]):
    """Results of `make` by index; the most recently used stay in memory, up to `limit` bytes (`size` of each)."""

    def __init__(self, make: Callable[[int], T], size: Callable[[T], int], limit: int = _LIMIT) -> None:
        self.make, self.size, self.limit = make, size, limit
        self._cached: OrderedDict[int, T] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, index: int) -> T:
        """The result for an index, computed unless it is in memory."""
        if index not in self._cached:
            self._cached[index] = self.make(index)
            self._bytes += self.size(self._cached[index])
            while self._bytes > self.limit and len(self._cached) > 1:
                self._bytes -= self.size(self._cached.popitem(last=False)[1])
        self._cached.move_to_end(index)
        return self._cached[index]


def images_of(dataset: Dataset) -> Cache[Tensor]:
    """The decoded images of a split: UInt8[3 h w], RGB."""
    return Cache(lambda index: torch.from_numpy(dataset.image(index)).permute(2, 0, 1), Tensor.numel)
