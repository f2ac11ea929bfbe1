"""The two networks that turn a picture's regions into vectors: R-CNN's looks at each region, SPPnet's at the picture.

Both have the same layers: convolutions up to pool5, then fc6 and fc7, and a layer that tells K classes and background
apart, which is needed for tuning alone. Letters: p regions of one picture, d numbers of pool5, f of fc7, K classes.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, dropout, interpolate

from twostage.models.stagewise.warp import warp
from twostage.ops.boxes import area
from twostage.ops.spp import spp

_WINDOWS = 128  # that go through the network together


class Hidden(nn.Module):
    """fc6 and fc7, each followed by ReLU and dropout."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.inputs = inputs
        self.fc6 = nn.Linear(inputs, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "p d"]) -> Float[Tensor, "p f"]:
        """fc7 of pool5."""
        x = dropout(self.fc6(x).relu_(), self.dropout, self.training)
        return dropout(self.fc7(x).relu_(), self.dropout, self.training)


@runtime_checkable
class RegionNet(Protocol):
    """What both have in common, and all that the stages after them see."""

    backbone: nn.Module
    body: Hidden
    classes: nn.Linear  # K + 1, background first

    def pool5(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Float[p d] of the regions of a normalised picture Float[3 h w], boxes on its own pixels."""
        ...


class WindowNet(nn.Module):
    """R-CNN's (Girshick et al. 2014, section 2): every region is warped to the input, and goes through it alone.

    `size` is the side of a window, `context` how much of it on each side is what lies around the box, `side` that of
    pool5.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        num_classes: int,
        *,
        size: int,
        context: int,
        side: int,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.size, self.context, self.side = size, context, side
        self.body = Hidden(channels * side * side, width, dropout)
        self.classes = nn.Linear(width, num_classes + 1)

    def forward(self, windows: Float[Tensor, "p 3 s s"]) -> Float[Tensor, "p k1"]:
        """Logits of windows."""
        return self.classes(self.body(self.of_windows(windows)))

    def of_windows(self, windows: Float[Tensor, "p 3 s s"]) -> Float[Tensor, "p d"]:
        """pool5 of windows; row, column, channel, as a Fast R-CNN's fc6 reads it."""
        (x,) = self.backbone(windows)
        return adaptive_max_pool2d(x, self.side).permute(0, 2, 3, 1).flatten(1)

    def windows(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "p 4"]) -> Float[Tensor, "p 3 s s"]:
        """The windows of a normalised picture's regions."""
        return warp(image, boxes.to(image.device), size=self.size, context=self.context)

    def pool5(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "p 4"]) -> Float[Tensor, "p d"]:
        """pool5 of a picture's regions, some of them at a time."""
        parts = [self.of_windows(self.windows(image, some)) for some in boxes.split(_WINDOWS)]
        return torch.cat(parts) if parts else image.new_zeros(0, self.body.inputs)


class PyramidNet(nn.Module):
    """SPPnet's (He et al. 2014, section 4): the picture goes through once a size, regions are pooled from its map.

    Of several `sizes` (shortest side; 480 to 1200 in the paper) each region takes the one at which its area is nearest
    to `region` squared (224 in the paper). `pyramid` lists the bins along a side of each level.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        num_classes: int,
        *,
        sizes: Sequence[int],
        region: float,
        stride: int,
        pyramid: Sequence[int],
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sizes, self.region, self.stride, self.pyramid = tuple(sizes), region, stride, tuple(pyramid)
        self.body = Hidden(channels * sum(bins * bins for bins in pyramid), width, dropout)
        self.classes = nn.Linear(width, num_classes + 1)

    def maps(self, image: Float[Tensor, "3 h w"]) -> list[Float[Tensor, "1 c _ _"]]:
        """The feature map at each size."""
        found = []
        for size in self.sizes:
            scale = size / min(image.shape[1:])
            shape = [max(1, round(side * scale)) for side in image.shape[1:]]
            (x,) = self.backbone(interpolate(image[None], shape, mode="bilinear"))
            found.append(x)
        return found

    def pool5(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "p 4"]) -> Float[Tensor, "p d"]:
        """The pyramid of each region of a picture."""
        return self.pooled(self.maps(image), min(image.shape[1:]), boxes)

    def pooled(
        self, maps: Sequence[Float[Tensor, "1 c _ _"]], shortest: int, boxes: Float[Tensor, "p 4"]
    ) -> Float[Tensor, "p d"]:
        """The pyramid of each region from the maps of a picture whose shortest side is so many pixels."""
        boxes = boxes.to(maps[0].device)
        if len(maps) == 1:  # nothing to choose, nothing to copy
            return self._of_map(maps[0], boxes, self.sizes[0] / shortest)
        out = boxes.new_zeros(len(boxes), self.body.inputs)
        choice = self.choose(boxes, shortest)
        for k, (size, features) in enumerate(zip(self.sizes, maps, strict=True)):
            rows = (choice == k).nonzero()[:, 0]
            if len(rows):
                out[rows] = self._of_map(features, boxes[rows], size / shortest).to(out.dtype)
        return out

    def _of_map(
        self, features: Float[Tensor, "1 c _ _"], boxes: Float[Tensor, "p 4"], scale: float
    ) -> Float[Tensor, "p d"]:
        return spp(features, (boxes * scale)[None], stride=self.stride, pyramid=self.pyramid)[0]

    def choose(self, boxes: Float[Tensor, "p 4"], shortest: int) -> Tensor:
        """Which of the sizes each region is pooled at (section 4.1)."""
        side = area(boxes).sqrt()
        scaled = side[:, None] * (torch.tensor(self.sizes, device=boxes.device) / shortest)
        return (scaled - self.region).abs().argmin(dim=1)
