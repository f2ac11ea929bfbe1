"""Masks of detections: a small fully convolutional network on every box (Mask R-CNN, He et al. 2017).

Letters: N images, D boxes an image, C channels, m the pooled side, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from twostage.data.batch import Targets
from twostage.models.backbones.norm import ConvNorm, Norm
from twostage.models.fields import Fields
from twostage.models.filled import filled
from twostage.models.heads.bodies import Stage5
from twostage.models.heads.box import BoxHead, Look, Maps
from twostage.models.heads.detect import Found
from twostage.models.losses import Losses, Mean, alone, mask_loss, one_over_sampled
from twostage.models.proposals.rpn import Proposals
from twostage.models.targets.masks import mask_targets
from twostage.models.targets.regions import RegionTargets
from twostage.models.targets.sampling import Sampler

Tell = Callable[[Float[Tensor, "n d 4"], Int[Tensor, "n d"]], Float[Tensor, "n d M M"]]
"""From boxes and their classes to the logits of their masks."""


class Doubling(nn.Module):
    """A transposed convolution of 2 x 2 with stride 2: every cell becomes four, each by a matrix of its own.

    `weight` is [4, out, in], cells in reading order; torch has [in, out, 2, 2].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=(2 / (4 * outputs)) ** 0.5)  # He et al. 2015, by what leaves

    def forward(self, x: Float[Tensor, "*r c"]) -> Float[Tensor, "*r 4 d"]:
        """The four cells that each cell becomes."""
        return linear(x, self.weight.flatten(0, 1), self.bias.repeat(4)).unflatten(-1, (4, -1))


class OwnClass(nn.Module):
    """The last layer: one linear map a class, of which each region needs its own class's alone."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.normal_(self.weight, std=0.001)  # detectron2's: at first every cell is as likely in as out

    def forward(self, x: Float[Tensor, "r q c"], labels: Int[Tensor, " r"]) -> Float[Tensor, "r q"]:
        """The logit of every cell."""
        return torch.baddbmm(self.bias[labels, None, None], x, self.weight[labels, :, None]).squeeze(2)


class MaskHead(nn.Module):
    """`regions` pools each box, `convs` look at it, `up` doubles its cells, `classes` tells each cell's logit."""

    def __init__(
        self, fields: Fields, regions: nn.Module, channels: int, num_classes: int, norm: Norm | None = None
    ) -> None:
        super().__init__()
        self.fields = fields
        self.regions: nn.Module = regions
        self.channels = channels
        width = fields.mask_channels
        self.convs = nn.Sequential(
            *(
                ConvNorm(
                    nn.Conv2d(channels if k == 0 else width, width, 3, padding=1, bias=norm is None),
                    norm and norm(width),
                    "relu",
                )
                for k in range(fields.mask_convs)
            )
        )
        self.up = Doubling(width if fields.mask_convs else channels, width)
        self.classes = OwnClass(width, num_classes)
        for module in self.convs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, maps: Maps, boxes: Float[Tensor, "n d 4"], labels: Int[Tensor, "n d"]
    ) -> Float[Tensor, "n d M M"]:
        """The logits of each box's mask for its class."""
        return self.tell(self.convs(self.regions(maps, boxes).flatten(0, 1)), labels)

    def tell(self, x: Float[Tensor, "r c m m"], labels: Int[Tensor, "n d"]) -> Float[Tensor, "n d M M"]:
        """Logits from what the convolutions say.

        The four cells of one stay together until their logit is known: one number each is moved, and not C.
        """
        side = x.shape[2]
        cells = self.up(x.permute(0, 2, 3, 1).flatten(1, 2)).relu_()
        logits = self.classes(cells.flatten(1, 2), labels.flatten())
        return logits.view(*labels.shape, side, side, 2, 2).transpose(3, 4).reshape(*labels.shape, 2 * side, 2 * side)

    def masks(self, found: Found, tell: Tell) -> Found:
        """Detections with the masks whose logits `tell` gives."""
        count = filled(found.valid)
        return with_masks(found, tell(found.boxes[:, :count], found.labels[:, :count]).float().sigmoid())

    def loss(self, goal: RegionTargets, targets: Targets, tell: Tell, mean: Mean = alone) -> Float[Tensor, ""]:
        """The loss of the positives among sampled regions, or of a draw of them, by the logits that `tell` gives.

        Raises ValueError for targets without masks.
        """
        if targets.masks is None:
            raise ValueError("A model with masks needs them to learn from: these targets have none.")
        # An empty mask says nothing of its object.
        sides = targets.masks.frames[..., 2:] - targets.masks.frames[..., :2]
        masked = goal.positive & (sides > 0).all(dim=2).gather(1, goal.truth)
        most = max(1, int(self.fields.region_batch * self.fields.region_positive_fraction))
        most = min(most, self.fields.mask_regions or most)
        # Positives are in random order, or those that are told worst come first: so stay those with a mask.
        first = masked.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
        first = first[:, : max(1, filled(masked.gather(1, first)))]
        positive, truth, classes = (value.gather(1, first) for value in (masked, goal.truth, goal.classes))
        boxes = goal.boxes.gather(1, first[..., None].expand(-1, -1, 4))
        logits = tell(boxes, (classes - 1).clamp(min=0))
        wanted = mask_targets(boxes, truth, targets.masks, logits.shape[-1])
        return self.fields.mask_lambda * mask_loss(logits, wanted, positive, one_over_sampled(positive, mean))


def with_masks(found: Found, masks: Float[Tensor, "n _ M M"]) -> Found:
    """Detections with the masks of the first ones; all others are padding, whose masks are 0."""
    padded = pad(masks, (0, 0, 0, 0, 0, found.boxes.shape[1] - masks.shape[1]))
    return found._replace(masks=padded.where(found.valid[..., None, None], 0.0))


def apart(box: BoxHead, mask: MaskHead, maps: Maps) -> Tell:
    """The mask head pools regions of its own."""
    return partial(mask, maps)


def shared(box: BoxHead, mask: MaskHead, maps: Maps) -> Tell:
    """The mask head reads what the box head's `Stage5` makes of a region ("C4", section 3).

    In training the positives pass through it a second time: a quarter of the regions at most.
    """

    def tell(boxes: Float[Tensor, "n d 4"], labels: Int[Tensor, "n d"]) -> Float[Tensor, "n d M M"]:
        return mask.tell(cast(Stage5, box.body).layer4(box.regions(maps, boxes).flatten(0, 1)), labels)

    return tell


class BoxesAndMasks(nn.Module):
    """Mask R-CNN's second stage: boxes first, then a mask of each that is found (section 3.1, inference).

    `how` says what the mask head looks at: `apart` or `shared`.
    """

    knows_masks = True
    has_losses = True

    def __init__(self, box: BoxHead, mask: MaskHead, how: Callable[[BoxHead, MaskHead, Maps], Tell] = apart) -> None:
        super().__init__()
        self.box = box
        self.mask = mask
        self.how = how

    def reads(self, maps: Maps) -> Maps:
        """The maps and nothing else."""
        return maps

    def looks(self, maps: Maps, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> tuple[Look, ...]:
        """What the box head says."""
        return self.box.looks(maps, proposals, sizes)

    def detect(self, looks: tuple[Look, ...], proposals: Proposals, sizes: Int[Tensor, "n 2"], output: Fields) -> Found:
        """The boxes that come of it."""
        return self.box.detect(looks, proposals, sizes, output)

    def masks(self, maps: Maps, found: Found) -> Found:
        """The same with masks."""
        return self.mask.masks(found, self.how(self.box, self.mask, maps))

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: Mean = alone,
    ) -> Losses:
        """The multi-task loss, and that of the masks of its positives."""
        learned = self.box.learn(maps, proposals.boxes, proposals.valid, targets, sampler, mean)
        tell = self.how(self.box, self.mask, maps)
        return {**learned.losses, "mask": self.mask.loss(learned.goal, targets, tell, mean)}
