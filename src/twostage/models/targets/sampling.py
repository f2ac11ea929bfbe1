"""Which anchors and regions enter the loss: a random sample with a bounded share of positives.

Faster R-CNN, section 3.1.3 (256 anchors, up to half positive) and Fast R-CNN, section 2.3 (a quarter of the regions).
A sample is a function of the image's seed alone, drawn by a counter-based hash: no generator state, no loop over
images, the same on every device. Letters: N images, A boxes, S sampled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.models.targets.matching import NEGATIVE


class Sample(NamedTuple):
    """Indices of the sampled boxes, positives first; `valid` is False where an image had too few."""

    index: Int[Tensor, "n s"]  # type: ignore[assignment]  # hides tuple.index
    positive: Bool[Tensor, "n s"]
    valid: Bool[Tensor, "n s"]


Sampler = Callable[[Int[Tensor, "n a"], Int[Tensor, " n"]], Sample]
"""From matches (`matching.match`) and one seed per image to a sample."""


@dataclass(frozen=True)
class RandomSampler:
    """Draws `count` boxes per image without replacement, at most `positive_fraction` of them positive."""

    count: int
    positive_fraction: float

    def __call__(self, matches: Int[Tensor, "n a"], seeds: Int[Tensor, " n"]) -> Sample:
        """The sample of each image. Negatives fill the places that positives leave."""
        return largest(matches, uniform(seeds, matches.shape[1]), self.count, self.positive_fraction)


def largest(matches: Int[Tensor, "n a"], keys: Float[Tensor, "n a"], count: int, positive_fraction: float) -> Sample:
    """The boxes with the largest keys, all at least 0: positives up to their share, then negatives."""
    most = int(count * positive_fraction)
    count = min(count, matches.shape[1])
    positives, is_positive = _draw(matches >= 0, keys, min(most, count))
    negatives, is_negative = _draw(matches == NEGATIVE, keys, count)
    # Slot j holds the j-th positive while there are any, then the negatives.
    drawn = is_positive.sum(dim=1, keepdim=True)
    slot = torch.arange(count, device=matches.device).expand(len(matches), -1)
    positive = slot < drawn
    later = (slot - drawn).clamp(min=0)
    index = torch.where(
        positive,
        positives.gather(1, slot.clamp(max=max(positives.shape[1] - 1, 0))) if positives.shape[1] else slot,
        negatives.gather(1, later),
    )
    return Sample(index, positive, positive | is_negative.gather(1, later))


def uniform(seeds: Int[Tensor, " n"], count: int) -> Float[Tensor, "n {count}"]:
    """Numbers in [0, 1) from each seed: the finaliser of MurmurHash3 over both halves of the seed and the position.

    24 random bits, which float32 represents exactly; integer arithmetic, so equal on every device.
    """
    position = torch.arange(count, device=seeds.device)
    seed = _mixed(_mixed(seeds) ^ (seeds >> 32))
    bits = _mixed(seed[:, None] ^ (position * 0x9E3779B1))
    return (bits & 0xFFFFFF).float() / 0x1000000


def _mixed(x: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    # Masked to 32 bits after each product: the low bits are right even where 64 bits overflow.
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _draw(
    candidates: Bool[Tensor, "n a"], keys: Float[Tensor, "n a"], count: int
) -> tuple[Int[Tensor, "n _"], Bool[Tensor, "n _"]]:
    """The `count` candidates with the largest keys, and which of these exist."""
    top = torch.where(candidates, keys, -1.0).topk(count, dim=1)
    return top.indices, top.values >= 0
