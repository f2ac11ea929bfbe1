"""What a model receives: images of different sizes on one padded canvas, and their training targets.

Letters: N images, H, W the canvas, G ground-truth boxes of the image with most; the others are padded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import pad

from twostage.data.coverage import Coverage
from twostage.data.resize import Resize
from twostage.data.stuff import STRIDE, UNKNOWN


class GivenProposals(NamedTuple):
    """Proposals that come with the images, on the pixels of the batch, best first, padded to one number P."""

    boxes: Float[Tensor, "n p 4"]
    scores: Float[Tensor, "n p"]
    valid: Bool[Tensor, "n p"]

    def each(self, change: Callable[[Tensor], Tensor]) -> "GivenProposals":
        """`change` applied to all three tensors."""
        return GivenProposals(*(change(tensor) for tensor in self))


class Originals(NamedTuple):
    """The images before they were resized.

    Their heights and widths, what y and x on the batch are multiplied by to come to their pixels (`Resize.factors`),
    and where they end on the batch (`Resize.extent`).
    """

    sizes: Int[Tensor, "n 2"]
    factors: Float[Tensor, "n 2"]
    extents: Float[Tensor, "n 2"]

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], resize: Resize) -> "Originals":
        """Of images of these heights and widths."""
        factors, extents = zip(*((resize.factors(*size), resize.extent(*size)) for size in sizes), strict=True)
        return cls(torch.tensor(sizes), *(torch.tensor(each, dtype=torch.float32) for each in (factors, extents)))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Originals":
        """`change` applied to every tensor."""
        return Originals(*(change(tensor) for tensor in self))

    def to(self, device: torch.device | str) -> "Originals":
        """The same on another device."""
        return self.each(lambda tensor: tensor.to(device))


Stacked = TypeVar("Stacked", bound="_OnDevice")


class _OnDevice:
    """A dataclass of tensors, named tuples of tensors, and None."""

    def to(self: Stacked, device: torch.device | str) -> Stacked:
        """The same on another device; from pinned memory the copy overlaps with computation."""
        # On its way to the CPU it is waited for: nothing else keeps the CPU from reading what has not yet arrived.
        overlaps = torch.device(device).type != "cpu"
        return self._each(lambda tensor: tensor.to(device, non_blocking=overlaps))

    def pin_memory(self: Stacked) -> Stacked:
        """The same in page-locked memory, from which copies to a GPU overlap with computation."""
        return self._each(Tensor.pin_memory)

    def _each(self: Stacked, change: Callable[[Tensor], Tensor]) -> Stacked:
        values = vars(self).values()
        return type(self)(*(v if v is None else change(v) if isinstance(v, Tensor) else v.each(change) for v in values))


@dataclass(frozen=True)
class Batch(_OnDevice):
    """Images in RGB, 0 to 1, each in the top left corner of the canvas; `sizes` is each image's own (height, width).

    `proposals` are there if the model has no RPN. Without `originals` the images were not resized.
    """

    images: Float[Tensor, "n 3 h w"]
    sizes: Int[Tensor, "n 2"]
    proposals: GivenProposals | None = None
    originals: Originals | None = None

    @property
    def before(self) -> Originals:
        """The images before they were resized."""
        sizes = self.sizes
        return self.originals or Originals(sizes, torch.ones_like(sizes, dtype=torch.float32), sizes.float())

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvas."""
        return self.images.shape[2], self.images.shape[3]

    def on_canvas(self, height: int, width: int) -> "Batch":
        """The same images on a larger canvas."""
        if (height, width) == tuple(self.images.shape[2:]):
            return self
        canvas = self.images.new_zeros(len(self.images), 3, height, width).contiguous(memory_format=torch.channels_last)
        canvas[:, :, : self.images.shape[2], : self.images.shape[3]] = self.images
        return replace(self, images=canvas)

    def split(self, count: int) -> "list[Batch]":
        """The same images in batches of at most `count`."""
        return [self._each(lambda x, i=i: x[i : i + count]) for i in range(0, len(self.images), count)]  # type: ignore[misc]

    def clone(self) -> "Batch":
        """A copy of the batch."""
        return self._each(lambda tensor: tensor.clone(memory_format=torch.preserve_format))

    def copy_(self, other: "Batch") -> None:
        """Copy the content of a batch of the same shapes into this one."""
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(theirs)

    def _tensors(self) -> list[Tensor]:
        return [self.images, self.sizes, *(self.proposals or ()), *(self.originals or ())]


@dataclass(frozen=True)
class Targets(_OnDevice):
    """Ground truth on the pixels of the batch.

    `boxes` are xyxy, `labels` class ids 0..K-1 without background, `valid` is False where a row is padding.
    `seeds` are one integer per image for anchor and region sampling; equal seeds draw equal samples at any place in
    the batch. `masks`, and `stuff`, the class of each cell of `data.stuff.STRIDE` pixels of the canvas, are there if
    they are trained on.
    """

    boxes: Float[Tensor, "n g 4"]
    labels: Int[Tensor, "n g"]
    valid: Bool[Tensor, "n g"]
    seeds: Int[Tensor, " n"]
    masks: Coverage | None = None
    stuff: UInt8[Tensor, "n i j"] | None = None

    def on_canvas(self, height: int, width: int) -> "Targets":
        """The same targets on a larger canvas, unknown outside the old one."""
        if self.stuff is None:
            return self
        rows, columns = (-(-side // STRIDE) for side in (height, width))
        more = (0, columns - self.stuff.shape[2], 0, rows - self.stuff.shape[1])
        return replace(self, stuff=pad(self.stuff, more, value=UNKNOWN))


def canvas_shape(height: int, width: int, divisor: int) -> tuple[int, int]:
    """Both sides rounded up to a multiple of `divisor`."""
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def stack_images(
    images: Sequence[Float[Tensor, "3 _ _"]], *, divisor: int = 32, originals: Originals | None = None
) -> Batch:
    """One canvas for all images, padded at the bottom and the right with 0 to a multiple of `divisor`.

    The canvas is channels-last in memory: convolutions and RoIAlign are fastest on it.
    """
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = sizes.amax(dim=0).tolist()
    canvas = images[0].new_zeros(len(images), *canvas_shape(height, width, divisor), 3).permute(0, 3, 1, 2)
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return Batch(canvas, sizes, originals=originals)


def stack_proposals(proposals: Sequence[Float[Tensor, "_ 5"]], count: int) -> GivenProposals:
    """The first `count` proposals of each image, boxes xyxy and score side by side, padded to that number."""
    padded = _padded([p[:count] for p in proposals], count)
    number = torch.tensor([len(p) for p in proposals])
    return GivenProposals(padded[..., :4], padded[..., 4], torch.arange(count) < number[:, None])


def stack_stuff(maps: Sequence[UInt8[Tensor, "_ _"]], canvas: tuple[int, int]) -> UInt8[Tensor, "n i j"]:
    """Maps of several images in the top left corner of one canvas, unknown outside them."""
    cells = [-(-side // STRIDE) for side in canvas]
    whole = maps[0].new_full((len(maps), *cells), UNKNOWN)
    for place, stuff in zip(whole, maps, strict=True):
        place[: stuff.shape[0], : stuff.shape[1]] = stuff
    return whole


def stack_targets(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    labels: Sequence[Int[Tensor, " _"]],
    seeds: Sequence[int],
    masks: Sequence[Coverage] | None = None,
) -> Targets:
    """Ground truth of several images padded to the longest, and to at least one row, so that no axis is empty."""
    most = max([1, *(len(b) for b in boxes)])
    return Targets(
        boxes=_padded(boxes, most),
        labels=_padded(labels, most),
        valid=torch.stack([torch.arange(most) < len(b) for b in boxes]),
        seeds=torch.tensor(seeds, dtype=torch.int64),
        masks=None if masks is None else Coverage(*(_padded(grids, most) for grids in zip(*masks, strict=True))),
    )


def _padded(tensors: Sequence[Tensor], rows: int) -> Tensor:
    """Tensors of at most so many rows in one, with zeros below."""
    return torch.stack([pad(t, (*(0, 0) * (t.ndim - 1), 0, rows - len(t))) for t in tensors])
