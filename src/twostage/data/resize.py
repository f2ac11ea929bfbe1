"""The size of an image at the input of the network: by its shortest side, stretched to a fixed shape, or unchanged.

The same in training, prediction and evaluation; saved with the model.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from twostage.data.uint8_resize import by_opencv, by_pillow


@dataclass(frozen=True)
class Resize:
    """`shortest`: the shortest side becomes `size`, the longest at most `max_size` (Fast R-CNN, 4.6: 600, 1000).

    `fixed`: both sides become `size`; the aspect ratio changes. `none`: the image keeps its size. Without `antialias`,
    bilinear interpolation reads at most four pixels at any scale, as in torchvision's detectors. `rounding` of sides to
    integers: torchvision takes the floor, detectron2 and mmdetection the nearest. `by` pillow or opencv: in whole grey
    levels, as detectron2 and mmdetection resize (`data.uint8_resize`), with and without antialiasing. `by` caffe or
    skimage: as py-faster-rcnn and Detectron, and as simple-faster-rcnn, in floating point, with a rounding of their own
    and one factor for both axes (`factors`).
    """

    mode: Literal["shortest", "fixed", "none"] = "shortest"
    size: int = 800
    max_size: int = 1333
    antialias: bool = False
    rounding: Literal["floor", "nearest"] = "floor"
    by: Literal["torch", "pillow", "opencv", "caffe", "skimage"] = "torch"

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing an image of this height and width."""
        if self.mode == "fixed":
            return self.size, self.size
        if self.mode == "none":
            return height, width
        scale = self.scale(height, width)
        if self.by in ("caffe", "skimage"):  # halves go to the even number, by OpenCV, SciPy and Python
            return max(1, round(height * scale)), max(1, round(width * scale))
        half = 0.5 if self.rounding == "nearest" else 0.0
        return max(1, int(height * scale + half)), max(1, int(width * scale + half))

    def scale(self, height: int, width: int) -> float:
        """The factor of `shortest` before rounding to whole pixels."""
        if self.by == "caffe" and round(self.size / min(height, width) * max(height, width)) <= self.max_size:
            return self.size / min(height, width)
        return min(self.size / min(height, width), self.max_size / max(height, width))

    def factors(self, height: int, width: int) -> tuple[float, float]:
        """What y and x on the resized image are multiplied by to come to the image.

        Each axis has its own, since rounding to whole pixels changes the two differently; by caffe that before
        rounding holds for both, by skimage that of the width.
        """
        new_height, new_width = self.shape(height, width)
        if self.by == "caffe" and self.mode == "shortest":
            return (1 / self.scale(height, width),) * 2
        return (width / new_width if self.by == "skimage" else height / new_height), width / new_width

    def extent(self, height: int, width: int) -> tuple[float, float]:
        """Where an image of this height and width ends on the resized one, by `factors`: within half a pixel of it."""
        if self.by not in ("caffe", "skimage"):
            return self.shape(height, width)
        down, across = self.factors(height, width)
        return height / down, width / across

    def __call__(self, image: UInt8[Tensor, "3 h w"] | Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        """The image in float32 from 0 to 1 at its new shape; uint8 is divided by 255 first, or resized as uint8."""
        shape = self.shape(*image.shape[1:])
        if self.by in ("pillow", "opencv") and image.dtype == torch.uint8 and shape != tuple(image.shape[1:]):
            resize = by_pillow if self.by == "pillow" else by_opencv
            image = torch.tensor(resize(image.permute(1, 2, 0).numpy(), *shape)).permute(2, 0, 1)
        if not image.is_floating_point():
            image = image.float().div_(255)
        if shape == tuple(image.shape[1:]):
            return image
        if self.by in ("caffe", "skimage"):
            return _bilinear(image, shape, self._steps(*image.shape[1:]), mirrored=self.by == "skimage")
        antialias = self.antialias if self.by == "torch" else self.by == "pillow"
        return interpolate(image[None], shape, mode="bilinear", antialias=antialias)[0]

    def _steps(self, height: int, width: int) -> tuple[float, float]:
        """Pixels of the image for one of the resized image: OpenCV's are those of the factor that it is given."""
        if self.by == "caffe":
            return self.factors(height, width)
        new_height, new_width = self.shape(height, width)
        return height / new_height, width / new_width


def _bilinear(
    image: Float[Tensor, "3 h w"], shape: tuple[int, int], steps: tuple[float, float], *, mirrored: bool
) -> Float[Tensor, "3 _ _"]:
    """Interpolation at centres `steps` apart: outside the image its outermost pixel, or the `mirrored` image."""
    for axis, (new, step) in enumerate(zip(shape, steps, strict=True), 1):
        old = image.shape[axis]
        places = (np.arange(new) + 0.5) * step - 0.5
        first = np.floor(places).astype(np.int64)
        share = torch.from_numpy(places - first).to(image.dtype).reshape(-1, *(1,) * (2 - axis))
        at, after = (np.abs(k) if mirrored else k.clip(0) for k in (first, first + 1))
        if mirrored:
            at, after = (np.minimum(k, 2 * (old - 1) - k) for k in (at, after))
        at, after = (torch.from_numpy(k.clip(0, old - 1)) for k in (at, after))
        image = image.index_select(axis, at) * (1 - share) + image.index_select(axis, after) * share
    return image
