"""R-CNN and SPPnet as detectors: a network's vectors, a linear SVM a class on fc7, a ridge regressor a class on pool5.

(R-CNN, sections 2.3 and 3.5 and appendix C; SPPnet, section 4.) Letters: p regions, d numbers of pool5, f of fc7,
K classes.
"""

from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twostage.models.stagewise.nets import RegionNet
from twostage.ops.boxes import clip
from twostage.ops.deltas import decode
from twostage.ops.nms import nms

Scores = Literal["svm", "softmax"]


class Objects(NamedTuple):
    """Detections of one picture, best first."""

    boxes: Float[Tensor, "d 4"]
    scores: Float[Tensor, " d"]
    labels: Int[Tensor, " d"]
    proposals: Int[Tensor, " d"]


class Stagewise(nn.Module):
    """A detector whose stages are trained one after the other.

    `svms` holds a hyperplane for each class, `ridges` four regressors for each. A score is the distance from the
    hyperplane in its own unit: above 0 means the class, above `floor` it is kept. `scores` "softmax" takes the tuned
    network's own probabilities instead.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        scores: Scores = "svm",
        floor: float = -1.0,
        overlap: float = 0.3,
        max_det: int = 100,
    ) -> None:
        super().__init__()
        self.net = net
        body = self.regions.body
        self.svms = nn.Linear(body.fc7.out_features, num_classes)
        self.ridges = nn.Linear(body.fc6.in_features, 4 * num_classes)
        for layer in (self.svms, self.ridges):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.scores, self.floor, self.overlap, self.max_det = scores, floor, overlap, max_det
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @property
    def regions(self) -> RegionNet:
        """The network, as the stages after it see it."""
        return cast(RegionNet, self.net)

    def normalised(self, image: Tensor) -> Float[Tensor, "3 h w"]:
        """A picture (RGB, 0 to 255) as the network takes it."""
        return (image.to(self.mean.device).float() / 255 - self.mean) / self.std

    def vectors(self, image: Tensor, boxes: Float[Tensor, "p 4"]) -> tuple[Float[Tensor, "p d"], Float[Tensor, "p f"]]:
        """pool5 and fc7 of a picture's regions; boxes on its pixels."""
        pool5 = self.regions.pool5(self.normalised(image), boxes)
        return pool5, self.regions.body(pool5)

    def forward(self, image: Tensor, boxes: Float[Tensor, "p 4"]) -> Objects:
        """Detections from proposals on a picture (RGB, 0 to 255, Shaped[3 h w]).

        Each class has its own box for every proposal, and suppresses its own that overlap (R-CNN, section 2.2).
        """
        pool5, fc7 = self.vectors(image, boxes)
        score = self.svms(fc7)
        if self.scores == "softmax":
            score = self.regions.classes(fc7).softmax(dim=1)[:, 1:]
        p, k = score.shape
        moved = decode(self.ridges(pool5).view(p, k, 4), boxes.to(score.device)[:, None])
        size = torch.tensor([image.shape[1:]], device=score.device)
        moved = clip(moved.flatten(0, 1)[None], size)
        label = torch.arange(k, device=score.device).repeat(p)[None]
        flat = score.flatten()[None]
        sides = moved[..., 2:] - moved[..., :2]
        valid = (flat > self.floor) & (sides >= 1).all(dim=2)
        # On the processor, where suppression has no limit: nothing here is captured or exported.
        moved, flat, label, valid = moved.cpu(), flat.cpu(), label.cpu(), valid.cpu()
        kept = nms(moved, flat, label, valid, iou=self.overlap, top=self.max_det)
        place = kept.index[0][kept.valid[0]]
        return Objects(moved[0][place], flat[0][place], label[0][place], place // k)
