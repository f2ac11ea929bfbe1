"""The composition: an image flows through three rooms, and each may be another part (Faster R-CNN, Figure 2).

    batch ── backbone ──> maps ── proposal network ──> proposals ── head ──> detections

Fast R-CNN is the same without the network that proposes: its proposals come with the batch.
Every shape follows from the configuration: N images, P proposals, D detections, padded, with a validity mask.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twostage.data.batch import Batch, GivenProposals, Targets
from twostage.errors import UsageError
from twostage.models.fields import Fields
from twostage.models.heads.box import Look, Maps
from twostage.models.heads.detect import Found
from twostage.models.losses import Losses, Mean, alone
from twostage.models.proposals.rpn import Dense, Proposals
from twostage.models.targets.sampling import Sampler
from twostage.ops.boxes import clip


class Samplers(NamedTuple):
    """How anchors and regions are sampled in training; None is the random draw of the fields."""

    anchors: Sampler | None = None
    regions: Sampler | None = None


RANDOM = Samplers()


class Stages(NamedTuple):
    """Every stage of one prediction, on the pixels of the batch."""

    maps: Maps
    dense: Dense | None  # None where the proposals came with the batch
    proposals: Proposals
    looks: tuple[Look, ...]  # one, or one of each stage of a cascade
    found: Found


@runtime_checkable
class Proposer(Protocol):
    """The first stage. `proposals.rpn.RPN` is Faster R-CNN's; `proposals.dense.DenseNetwork` leaves no second to do."""

    fields: Fields

    def __call__(self, maps: Maps, canvas: tuple[int, int], sizes: Int[Tensor, "n 2"]) -> Dense:
        """What it says of every anchor."""
        ...

    def propose(self, dense: Dense, sizes: Int[Tensor, "n 2"]) -> Proposals:
        """The best of its boxes."""
        ...

    def losses(
        self, dense: Dense, sizes: Int[Tensor, "n 2"], targets: Targets, sampler: Sampler | None, mean: Mean
    ) -> Losses:
        """What is to be minimised, by name."""
        ...


@runtime_checkable
class Head(Protocol):
    """The second stage: all that happens to proposals. `heads.box.BoxHead` is Fast R-CNN's, others are built on it."""

    knows_masks: bool
    has_losses: bool

    def reads(self, maps: Maps) -> Maps:
        """What its regions are pooled from: the maps, and what it makes of them for all regions together."""
        ...

    def looks(self, maps: Maps, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> tuple[Look, ...]:
        """What is said of every proposal, once or stage after stage."""
        ...

    def detect(self, looks: tuple[Look, ...], proposals: Proposals, sizes: Int[Tensor, "n 2"], output: Fields) -> Found:
        """The detections that come of it."""
        ...

    def masks(self, maps: Maps, found: Found) -> Found:
        """The detections with their masks, where the head knows any."""
        ...

    def losses(
        self,
        maps: Maps,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        sampler: Sampler | None,
        mean: Mean,
    ) -> Losses:
        """What is to be minimised, by name."""
        ...


class TwoStage(nn.Module):
    """A two-stage detector of three parts: `backbone`, `rpn` and `head`.

    Without an `rpn` it is Fast R-CNN (Girshick 2015), and needs proposals in every batch; with one, proposals that come
    with a batch take the place of its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        fields: Fields,
        num_classes: int,
        *,
        backbone: nn.Module,
        rpn: nn.Module | None,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.fields = fields
        self.num_classes = num_classes
        self.dtype: torch.dtype | None = None  # of a prepared model's maps; None: that of the weights, or autocast's
        self.recorded: Callable[..., Any] | None = None  # of a prepared model on a GPU: inference.graphs.Recordings
        self.learns: tuple[str, ...] = ("backbone", "rpn", "head")  # whose losses count; see training.optimiser
        self.backbone = backbone
        self.rpn = cast(Proposer | None, rpn)
        self.head = head
        self.register_buffer("mean", torch.tensor(fields.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(fields.std)[:, None, None], persistent=False)

    @property
    def second(self) -> Head:
        """The head, as the composition sees it."""
        return cast(Head, self.head)

    @property
    def knows_masks(self) -> bool:
        """Whether there are masks to learn: the head has some, and learns."""
        return self.second.knows_masks and "head" in self.learns

    def forward(
        self, batch: Batch, targets: Targets | None = None, samplers: Samplers = RANDOM, mean: Mean = alone
    ) -> Losses | Found:
        """A dictionary of losses in training mode, detections in evaluation mode.

        `mean` is for processes that share a batch: the mean of their losses is then that of the whole batch.
        """
        if not self.training:
            return self.stages(batch).found
        if targets is None:
            raise ValueError("A model in training mode needs targets; call model.eval() for detections.")
        maps = self.features(batch)
        dense, proposals = self.proposals(maps, batch)
        return self.losses(maps, dense, proposals, batch.sizes, targets, samplers, mean)

    def stages(self, batch: Batch, output: Fields | None = None) -> Stages:
        """The forward pass with everything it computed; `output` replaces the fields of the last step."""
        maps = self.features(batch)
        dense, proposals = self.proposals(maps, batch)
        read = self.second.reads(maps)
        looks = self.second.looks(read, proposals, batch.sizes)
        found = self.second.detect(looks, proposals, batch.sizes, output or self.fields)
        return Stages(maps, dense, proposals, looks, self.second.masks(read, found))

    def features(self, batch: Batch) -> Maps:
        """Feature maps of the normalised images; padding is 0 after normalisation, as if it were the mean colour."""
        images = (batch.images - self.mean).div_(self.std)
        images.mul_(_on_image(batch.sizes, images.shape[2], images.shape[3])[:, None])
        return self.backbone(images if self.dtype is None else images.to(self.dtype))

    def proposals(self, maps: Maps, batch: Batch) -> tuple[Dense | None, Proposals]:
        """What the network says of every anchor, and the best of its boxes, or the boxes that came with the batch.

        With those the network is not asked, unless it learns. Raises UsageError where there is neither.
        """
        given = None if batch.proposals is None else as_proposals(batch.proposals, batch.sizes)
        if given is not None and not self.second.has_losses:
            raise UsageError("This detector has one stage: it takes no proposals from elsewhere.")
        if self.rpn is None or (given is not None and not (self.training and "rpn" in self.learns)):
            if given is None:
                raise UsageError("This detector has no network that proposes: give proposals with the batch.")
            return None, given
        dense = self.rpn(maps, batch.canvas, batch.sizes)
        return dense, self.rpn.propose(dense, batch.sizes) if given is None else given

    def losses(
        self,
        maps: Maps,
        dense: Dense | None,
        proposals: Proposals,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        samplers: Samplers = RANDOM,
        mean: Mean = alone,
    ) -> Losses:
        """The four losses of Faster R-CNN's joint training (section 3.2), or those of the parts that learn."""
        losses: Losses = {}
        if self.rpn is not None and dense is not None and "rpn" in self.learns:
            losses |= self.rpn.losses(dense, sizes, targets, samplers.anchors, mean)
        if "head" in self.learns or "boxes" in self.learns:
            losses |= self.second.losses(maps, proposals, sizes, targets, samplers.regions, mean)
        return losses


def as_proposals(given: GivenProposals, sizes: Int[Tensor, "n 2"]) -> Proposals:
    """Proposals from elsewhere, clipped to each image; the place in their list stands for the anchor."""
    place = torch.arange(given.scores.shape[1], device=sizes.device).expand(given.scores.shape)
    overflow = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    return Proposals(clip(given.boxes, sizes), given.scores, place, given.valid, overflow)


def _on_image(sizes: Int[Tensor, "n 2"], height: int, width: int) -> Float[Tensor, "n {height} {width}"]:
    """1 on each image, 0 on its padding."""
    y = torch.arange(height, device=sizes.device)
    x = torch.arange(width, device=sizes.device)
    return ((y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None, :]).float()
