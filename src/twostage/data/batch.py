"""What a model receives: images of different sizes on one padded canvas, and what it should learn from them.

Letters: N images, H, W the canvas, G ground-truth boxes of the fullest image; the others are padded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Batch:
    """Images in RGB, 0 to 1, each in the top left corner of the canvas; `sizes` is each image's own (height, width)."""

    images: Float[Tensor, "n 3 h w"]
    sizes: Int[Tensor, "n 2"]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; the copy runs beside the computation where the memory is pinned."""
        return Batch(self.images.to(device, non_blocking=True), self.sizes.to(device, non_blocking=True))

    def on_canvas(self, height: int, width: int) -> "Batch":
        """The same images on a larger canvas."""
        if (height, width) == tuple(self.images.shape[2:]):
            return self
        canvas = self.images.new_zeros(len(self.images), 3, height, width).contiguous(memory_format=torch.channels_last)
        canvas[:, :, : self.images.shape[2], : self.images.shape[3]] = self.images
        return Batch(canvas, self.sizes)

    def split(self, count: int) -> "list[Batch]":
        """The same images, at most so many together."""
        parts = zip(self.images.split(count), self.sizes.split(count), strict=True)
        return [Batch(images, sizes) for images, sizes in parts]

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which copies to a GPU run beside the computation."""
        return Batch(self.images.pin_memory(), self.sizes.pin_memory())


@dataclass(frozen=True)
class Targets:
    """Ground truth on the pixels of the batch.

    `boxes` are xyxy, `labels` class ids 0..K-1 without background, `valid` is False where a row is padding.
    `seeds` are one integer an image from which anchor and region sampling draw; equal seeds draw equal samples,
    whatever the image's place in the batch.
    """

    boxes: Float[Tensor, "n g 4"]
    labels: Int[Tensor, "n g"]
    valid: Bool[Tensor, "n g"]
    seeds: Int[Tensor, " n"]
    masks: Bool[Tensor, "n g h w"] | None = None

    def to(self, device: torch.device | str) -> "Targets":
        """The same targets on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Targets":
        """The same targets in page-locked memory, from which copies to a GPU run beside the computation."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        masks = None if self.masks is None else change(self.masks)
        return Targets(change(self.boxes), change(self.labels), change(self.valid), change(self.seeds), masks)


def canvas_shape(height: int, width: int, divisor: int) -> tuple[int, int]:
    """Both sides rounded up to a multiple of `divisor`."""
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def stack_images(images: Sequence[Float[Tensor, "3 _ _"]], *, divisor: int = 32) -> Batch:
    """One canvas for all images, padded at the bottom and the right with 0 to a multiple of `divisor`.

    The canvas is channels-last in memory: convolutions and RoIAlign are fastest on it.
    """
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = sizes.amax(dim=0).tolist()
    canvas = images[0].new_zeros(len(images), *canvas_shape(height, width, divisor), 3).permute(0, 3, 1, 2)
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return Batch(canvas, sizes)


def stack_targets(
    boxes: Sequence[Float[Tensor, "_ 4"]], labels: Sequence[Int[Tensor, " _"]], seeds: Sequence[int]
) -> Targets:
    """Ground truth of several images padded to the fullest one, and to at least one row, so that no axis is empty."""
    most = max([1, *(len(b) for b in boxes)])
    return Targets(
        boxes=torch.stack([pad(b, (0, 0, 0, most - len(b))) for b in boxes]),
        labels=torch.stack([pad(c, (0, most - len(c))) for c in labels]),
        valid=torch.stack([torch.arange(most) < len(b) for b in boxes]),
        seeds=torch.tensor(seeds, dtype=torch.int64),
    )
