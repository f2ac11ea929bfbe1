"""Batches, ground truth and a deterministic sampler for the models' tests."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from twostage.data.batch import Batch, Targets, stack_images, stack_targets
from twostage.models.targets.matching import NEGATIVE
from twostage.models.targets.sampling import Sample


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Random images of these (height, width) on one canvas."""

    def make(*sizes: tuple[int, int], divisor: int = 32, seed: int = 0) -> Batch:
        g = torch.Generator().manual_seed(seed)
        return stack_images([torch.rand(3, *size, generator=g) for size in sizes], divisor=divisor)

    return make


@pytest.fixture
def make_targets() -> Callable[..., Targets]:
    """So many random objects of 3 classes on each image of these (height, width)."""

    def make(sizes: list[tuple[int, int]], counts: list[int], seed: int = 0) -> Targets:
        g = torch.Generator().manual_seed(seed)
        boxes, labels = [], []
        for (height, width), count in zip(sizes, counts, strict=True):
            limit = torch.tensor([width, height], dtype=torch.float32)
            corner = torch.rand(count, 2, generator=g) * limit * 0.6
            sides = (0.1 + 0.3 * torch.rand(count, 2, generator=g)) * limit
            boxes.append(torch.cat([corner, corner + sides], dim=1))
            labels.append(torch.randint(3, (count,), generator=g))
        return stack_targets(boxes, labels, seeds=list(range(len(sizes))))

    return make


class EveryFirst:
    """A deterministic sampler: the first positives and negatives, as many as `RandomSampler` takes."""

    def __init__(self, count: int, positive_fraction: float) -> None:
        self.count = count
        self.positives = int(count * positive_fraction)

    def __call__(self, matches: Tensor, seeds: Tensor) -> Sample:
        rows = [self.pick(row) for row in matches]
        index = torch.zeros(len(rows), self.count, dtype=torch.int64)
        positive, valid = torch.zeros(2, len(rows), self.count, dtype=torch.bool)
        for i, (positives, negatives) in enumerate(rows):
            taken = torch.cat([positives, negatives])
            index[i, : len(taken)] = taken
            positive[i, : len(positives)] = True
            valid[i, : len(taken)] = True
        return Sample(index, positive, valid)

    def pick(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the positives and the negatives of one image."""
        positives = (matches >= 0).nonzero()[: self.positives, 0]
        negatives = (matches == NEGATIVE).nonzero()[: self.count - len(positives), 0]
        return positives, negatives

    def for_torchvision(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The same choice as torchvision's sampler makes it: labels 1 and up, 0 and -1; masks instead of indices."""
        chosen = ([], [])
        for row in labels:
            picked = self.pick(torch.where(row >= 1, 0, torch.where(row == 0, NEGATIVE, -2)))
            for masks, index in zip(chosen, picked, strict=True):
                masks.append(torch.zeros(len(row), dtype=torch.bool).index_fill(0, index, True))
        return chosen


@pytest.fixture
def every_first() -> type[EveryFirst]:
    return EveryFirst
