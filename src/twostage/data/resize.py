"""The size of an image at the input of the network: by its shortest side, stretched to a fixed shape, or unchanged.

The same in training, prediction and evaluation; saved with the model.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from twostage.data.interpolation import bilinear
from twostage.data.resize_geometry import (
    By,
    interpolation_steps,
    resize_factors,
    resized_extent,
    resized_shape,
)
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
    by: By = "torch"

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """`resize_geometry.resized_shape`."""
        return resized_shape(self, height, width)

    def factors(self, height: int, width: int) -> tuple[float, float]:
        """`resize_geometry.resize_factors`."""
        return resize_factors(self, height, width)

    def extent(self, height: int, width: int) -> tuple[float, float]:
        """`resize_geometry.resized_extent`."""
        return resized_extent(self, height, width)

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
            steps = interpolation_steps(self, *image.shape[1:])
            out = bilinear(image.permute(1, 2, 0).numpy(), *shape, steps, mirrored=self.by == "skimage")
            return torch.from_numpy(out).permute(2, 0, 1)
        antialias = self.antialias if self.by == "torch" else self.by == "pillow"
        return interpolate(image[None], shape, mode="bilinear", antialias=antialias)[0]
