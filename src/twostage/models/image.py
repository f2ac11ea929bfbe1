"""How images enter a network: their size, and the pixel mean and standard deviation they are normalised by."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twostage.data.batch import Batch
from twostage.data.resize import Resize
from twostage.models.component import Count, Positive, short

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageConfig:
    """`resize` to `rounding` are those of `data.resize.Resize`; `mean` and `std` are of RGB from 0 to 1.

    The canvas of a batch is padded to a multiple of `divisor` pixels.
    """

    resize: Literal["shortest", "fixed"] = short("shortest", "resize")
    size: Count = short(800, "size")
    max_size: Count = short(1333, "max_size")
    antialias: bool = short(False, "antialias")
    rounding: Literal["floor", "nearest"] = short("floor", "rounding")
    resize_by: Literal["torch", "pillow", "opencv", "caffe", "skimage"] = short("torch", "resize_by")
    mean: tuple[float, float, float] = short(IMAGENET_MEAN, "mean")
    std: tuple[Positive, Positive, Positive] = short(IMAGENET_STD, "std")
    divisor: Count = short(32, "divisor")

    @property
    def resizing(self) -> Resize:
        """The resize rule."""
        return Resize(self.resize, self.size, self.max_size, self.antialias, self.rounding, self.resize_by)


@dataclass(frozen=True)
class OwnSizeConfig:
    """Images at their own size, each canvas as large as its image; `mean` and `std` as in `ImageConfig`."""

    mean: tuple[float, float, float] = short(IMAGENET_MEAN, "mean")
    std: tuple[Positive, Positive, Positive] = short(IMAGENET_STD, "std")

    @property
    def resizing(self) -> Resize:
        """The rule that changes nothing."""
        return Resize("none")

    @property
    def divisor(self) -> int:
        """No padding."""
        return 1


AnyImageConfig = ImageConfig | OwnSizeConfig


class Normalize(nn.Module):
    """Subtracts the pixel mean and divides by the standard deviation; padding becomes 0, the mean colour."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: AnyImageConfig) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.std)[:, None, None], persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        """The normalised images."""
        images = (batch.images - self.pixel_mean).div_(self.pixel_std)
        return images.mul_(_on_image(batch.sizes, images.shape[2], images.shape[3])[:, None])


def _on_image(sizes: Int[Tensor, "n 2"], height: int, width: int) -> Float[Tensor, "n {height} {width}"]:
    """1 on each image, 0 on its padding."""
    y = torch.arange(height, device=sizes.device)
    x = torch.arange(width, device=sizes.device)
    return ((y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None, :]).float()
