"""What training changes about an image, drawn from the generator of the sample.

Geometry is a `View`: a window of the image, and how it is mirrored. It is drawn once and applied to pixels and
boxes alike, before the image is resized; colour comes after, on fewer pixels. Torchvision is imported when used.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from twostage.data.coverage import Coverage
from twostage.data.stuff import UNKNOWN
from twostage.errors import UsageError

# The strongest factors at colour = 1: of brightness, contrast and saturation; of hue in turns of the colour circle.
TONE, HUE = 0.4, 0.05


class View(NamedTuple):
    """A window of the image, which may reach over its borders, then mirrored.

    `top`, `left`, `height`, `width` are the window in pixels of the image; `flip` mirrors left and right,
    `vertical_flip` top and bottom.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    vertical_flip: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the view."""
        return self.height, self.width

    def image(self, image: Tensor, beyond: Tensor | float = 0) -> Tensor:
        """The view of an image [..., h, w], filled with the colour `beyond` [..., 1, 1] outside the image."""
        height, width = image.shape[-2:]
        if (self.top, self.left, self.height, self.width) != (0, 0, height, width):
            canvas = image.new_empty(*image.shape[:-2], self.height, self.width)
            canvas[:] = beyond
            bottom, right = min(height, self.top + self.height), min(width, self.left + self.width)
            part = image[..., max(0, self.top) : bottom, max(0, self.left) : right]
            down, across = max(0, -self.top), max(0, -self.left)
            canvas[..., down : down + part.shape[-2], across : across + part.shape[-1]] = part
            image = canvas
        return self.mirror(image)

    def mirror(self, image: Tensor) -> Tensor:
        """An image [..., h, w] or grids over objects [..., m, m], mirrored as the view is."""
        axes = [axis for axis, turned in ((-1, self.flip), (-2, self.vertical_flip)) if turned]
        return image.flip(axes) if axes else image

    def boxes(self, boxes: Float[Tensor, "g 4"]) -> Float[Tensor, "g 4"]:
        """Boxes xyxy of the image in the pixels of the view; they may reach over its borders."""
        x1, y1, x2, y2 = boxes.unbind(1)
        x1, x2, y1, y2 = x1 - self.left, x2 - self.left, y1 - self.top, y2 - self.top
        if self.flip:
            x1, x2 = self.width - x2, self.width - x1
        if self.vertical_flip:
            y1, y2 = self.height - y2, self.height - y1
        return torch.stack([x1, y1, x2, y2], dim=1)


class Sample(NamedTuple):
    """An image and its objects. `labels` are class ids, `proposals` boxes and scores where the data set has them.

    `masks` and the map of `stuff` are there if they are trained on; `original` is the height and width before the image
    was resized.
    """

    image: UInt8[Tensor, "3 h w"] | Float[Tensor, "3 h w"]
    boxes: Float[Tensor, "g 4"]
    labels: Int[Tensor, " g"]
    proposals: Float[Tensor, "p 5"] | None = None
    masks: Coverage | None = None
    stuff: UInt8[Tensor, "i j"] | None = None
    original: tuple[int, int] | None = None


@dataclass(frozen=True)
class Augment:
    """Chances and strengths of each change; the default mirrors half of the images and does nothing else.

    `flip`, `vertical_flip`: chance to mirror. `scale`: smallest and largest factor of objects against the image,
    uniform in its logarithm: above 1 a window is cut out, below 1 the image is placed on a larger canvas. `crop`:
    chance to cut out a window of 0.3 to 1 of the area, with the centre of some object in it. Objects with less than
    `visible` of their area left are dropped, the others are clipped. `colour`: from 0 to 1, strength of brightness,
    contrast and saturation (at 1 factors of 0.6 to 1.4) and hue (at 1 a twentieth of the circle to either side).
    `beyond` is the colour, RGB from 0 to 1, outside the image: the model's mean colour, as in the padding of a batch.
    Raises UsageError for values out of range.
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    crop: float = 0.0
    visible: float = 0.3
    colour: float = 0.0
    beyond: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("flip", "vertical_flip", "crop", "visible", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it is a number from 0 to 1.")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise UsageError(f"scale is {self.scale}; it is two positive factors, the smaller one first.")

    def __call__(
        self,
        image: UInt8[Tensor, "3 h w"],
        boxes: Float[Tensor, "g 4"],
        labels: Int[Tensor, " g"],
        rng: np.random.Generator,
    ) -> Sample:
        """Another image with its objects: `geometry`, then `recolour`."""
        sample = self.geometry(Sample(image, boxes, labels), rng)
        return sample._replace(image=self.recolour(sample.image, rng))

    def geometry(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Window and mirror; boxes are clipped to the view, and dropped if too little of them is left."""
        view = self.view(sample.image.shape[1], sample.image.shape[2], sample.boxes, rng)
        boxes, keep = clip(view.boxes(sample.boxes), view.shape, self.visible)
        scale = 1.0 if sample.image.is_floating_point() else 255.0
        beyond = (torch.tensor(self.beyond)[:, None, None] * scale).to(sample.image.dtype)
        proposals = sample.proposals
        if proposals is not None:
            moved, seen = clip(view.boxes(proposals[:, :4]), view.shape, self.visible)
            proposals = torch.cat([moved, proposals[:, 4:]], dim=1)[seen]
        masks = sample.masks
        if masks is not None:
            masks = Coverage(view.boxes(masks.frames)[keep], view.mirror(masks.cells[keep]))
        stuff = sample.stuff
        if stuff is not None:
            stuff = view.image(stuff[None], UNKNOWN)[0]
        return Sample(view.image(sample.image, beyond), boxes[keep], sample.labels[keep], proposals, masks, stuff)

    def view(self, height: int, width: int, boxes: Float[Tensor, "g 4"], rng: np.random.Generator) -> View:
        """The view of an image of this size that the generator draws."""
        factor = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        chances = rng.random(8)
        window = height / factor, width / factor
        centre: tuple[float, float] | None = None
        if chances[0] < self.crop:
            side, aspect = math.sqrt(0.3 + 0.7 * chances[1]), (4 / 3) ** (2 * chances[2] - 1)
            window = window[0] * min(side * aspect, 1), window[1] * min(side / aspect, 1)
            if len(boxes):
                x1, y1, x2, y2 = boxes[int(chances[3] * len(boxes))].tolist()
                centre = (y1 + y2) / 2, (x1 + x2) / 2
        rows, columns = (max(1, round(side)) for side in window)
        top, left = (
            _start(size, part, None if centre is None else centre[axis], chances[4 + axis])
            for axis, (size, part) in enumerate(((height, rows), (width, columns)))
        )
        flip, vertical_flip = chances[6] < self.flip, chances[7] < self.vertical_flip
        return View(top, left, rows, columns, bool(flip), bool(vertical_flip))

    def recolour(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """The image [3, h, w], uint8 or from 0 to 1, in other colours."""
        if not self.colour:
            return image
        from torchvision.transforms.v2 import functional as F

        low, high = 1 - TONE * self.colour, 1 + TONE * self.colour
        brightness, contrast, saturation = rng.uniform(low, high, 3).tolist()
        image = F.adjust_brightness_image(image, brightness)
        image = F.adjust_contrast_image(image, contrast)
        image = F.adjust_saturation_image(image, saturation)
        return turn_hue(image, rng.uniform(-HUE, HUE) * self.colour)


def clip(boxes: Float[Tensor, "g 4"], shape: tuple[int, int], visible: float) -> tuple[Float[Tensor, "g 4"], Tensor]:
    """Boxes clipped to an image of this (height, width), and whether each keeps at least `visible` of its area."""
    height, width = shape
    limits = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    clipped = boxes.clamp(min=0).minimum(limits)
    area, left = ((b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=1) for b in (boxes, clipped))
    return clipped, (left > 0) & (left >= visible * area)


def turn_hue(image: Tensor, turns: float) -> Tensor:
    """Colours rotated about the grey axis of the RGB cube by this many turns.

    One 3 x 3 matrix, fifteen times as fast as a conversion to HSV and back; greys do not change.
    """
    cosine, sine = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    along, across = (1 - cosine) / 3, sine / math.sqrt(3)
    matrix = torch.full((3, 3), along) + torch.eye(3) * cosine
    matrix += torch.tensor([[0, -across, across], [across, 0, -across], [-across, across, 0]])
    scale = 1.0 if image.is_floating_point() else 255.0
    turned = (matrix @ image.reshape(3, -1).float()).clamp_(0, scale).reshape(image.shape)
    return turned if image.is_floating_point() else turned.round_().to(image.dtype)


def _start(size: int, part: int, centre: float | None, chance: float) -> int:
    """Start of a window of `part` pixels on a side of `size`: anywhere it fits, with `centre` inside."""
    low, high = min(0, size - part), max(0, size - part)
    if centre is not None:
        low, high = max(low, min(high, math.ceil(centre - part))), min(high, max(low, math.floor(centre)))
    return low + int(chance * (high - low + 1))
