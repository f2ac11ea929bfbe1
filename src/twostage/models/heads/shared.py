"""Masks from the features that the box head has made of a region: ResNet's last stage serves both (Mask R-CNN, "C4").

Letters: N images, D boxes an image.
"""

from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from twostage.data.batch import Targets
from twostage.models.fields import Fields
from twostage.models.heads.bodies import Stage5
from twostage.models.heads.box import BoxHead, Look, Maps
from twostage.models.heads.detect import Found
from twostage.models.heads.filled import filled
from twostage.models.heads.mask import MaskHead
from twostage.models.losses import Losses, Mean, alone
from twostage.models.proposals.rpn import Proposals
from twostage.models.targets.sampling import Sampler


class BoxesAndSharedMasks(nn.Module):
    """A box head whose body is `Stage5`, and a mask head without convolutions that reads that stage's map."""

    knows_masks = True

    def __init__(self, box: BoxHead, mask: MaskHead) -> None:
        super().__init__()
        self.box = box
        self.mask = mask

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
        count = filled(found.valid)
        logits = self.told(maps, found.boxes[:, :count], found.labels[:, :count])
        return found._replace(masks=pad(logits.float().sigmoid(), (0, 0, 0, 0, 0, found.boxes.shape[1] - count)))

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
        boxes, classes, truth, positive = self.mask.positives(learned.goal)
        logits = self.told(maps, boxes, (classes - 1).clamp(min=0))
        return {**learned.losses, "mask": self.mask.loss_of(logits, boxes, truth, positive, targets, mean)}

    def told(self, maps: Maps, boxes: Float[Tensor, "n d 4"], labels: Int[Tensor, "n d"]) -> Float[Tensor, "n d M M"]:
        """The logits of each box's mask for its class."""
        regions = self.box.regions(maps, boxes).flatten(0, 1)
        return self.mask.tell(cast(Stage5, self.box.body).layer4(regions), labels)
