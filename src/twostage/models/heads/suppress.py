"""No second stage: what was proposed with its class is found, but for overlaps (RetinaNet, section 4.1, inference).

Letters: N images, P proposals, K classes.
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from twostage.data.batch import Targets
from twostage.models.fields import Fields
from twostage.models.heads.box import Look, Maps
from twostage.models.heads.detect import Found, most_candidates, suppressed
from twostage.models.losses import Losses, Mean, alone
from twostage.models.proposals.rpn import Proposals
from twostage.models.targets.sampling import Sampler


class Suppress(nn.Module):
    """Takes `DenseNetwork`'s proposals as they are."""

    knows_masks = False
    has_losses = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def reads(self, maps: Maps) -> Maps:
        """The maps, though nobody looks at them."""
        return maps

    def looks(self, maps: Maps, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> tuple[Look, ...]:
        """None."""
        return ()

    def detect(self, looks: tuple[Look, ...], proposals: Proposals, sizes: Int[Tensor, "n 2"], output: Fields) -> Found:
        """Proposals above the threshold, less those that overlap better ones of their class."""
        score = proposals.scores.sigmoid()
        competes = proposals.valid & (score > output.score_threshold)
        candidates = most_candidates(output, score.shape[1], score.device)
        entering = score.where(competes, -torch.inf).sort(dim=1, descending=True, stable=True)
        place = entering.indices[:, :candidates]
        return suppressed(
            proposals.boxes.gather(1, place[..., None].expand(-1, -1, 4)),
            entering.values[:, :candidates],
            proposals.anchors.gather(1, place) % self.num_classes,
            place,
            competes.gather(1, place),
            proposals.overflow | (competes.sum(dim=1) > candidates),
            output,
        )

    def masks(self, maps: Maps, found: Found) -> Found:
        """The same: there are none."""
        return found

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None = None,
        mean: Mean = alone,
    ) -> Losses:
        """None: all is learned by what proposes."""
        return {}
