"""The one-stage detector: RetinaNet, on the same parts and with the same methods as a two-stage detector.

batch ── backbone ──> maps ── RetinaNet head ──> candidates ──> detections
"""

from collections.abc import Collection
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor, nn

from twostage.data.batch import Batch, Targets
from twostage.errors import UsageError
from twostage.models.config import OneStageConfig
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.heads.retinanet import Candidates, RetinaNetHead
from twostage.models.image import Normalize
from twostage.models.losses import Losses, ReduceMean, no_reduce
from twostage.models.proposals.rpn import AnchorPredictions
from twostage.models.regions.pooling import Maps

PARTS = frozenset(("backbone", "head"))


class OneStageStages(NamedTuple):
    """Every stage of one prediction, on the pixels of the batch."""

    maps: Maps
    anchors: AnchorPredictions
    proposals: Candidates
    detections: BatchDetections


class OneStage(nn.Module):
    """A detector of two parts: `backbone` and `head`."""

    has_masks = False
    rpn = None

    def __init__(self, config: OneStageConfig, num_classes: int, *, backbone: nn.Module, head: RetinaNetHead) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize(config.image)
        self.backbone = backbone
        self.head = head

    def forward(
        self,
        batch: Batch,
        targets: Targets | None = None,
        *,
        mean: ReduceMean = no_reduce,
        parts: Collection[str] = PARTS,
    ) -> Losses | BatchDetections:
        """A dictionary of losses in training mode, detections in evaluation mode; see `TwoStage.forward`."""
        if not self.training:
            return self.stages(batch).detections
        if targets is None:
            raise ValueError("A model in training mode needs targets; call model.eval() for detections.")
        return self.head.losses(self.predict(self.features(batch), batch), targets, mean)

    def losses(
        self,
        stages: OneStageStages,
        sizes: Int[Tensor, "n 2"],
        targets: Targets,
        *,
        mean: ReduceMean = no_reduce,
        parts: Collection[str] = PARTS,
    ) -> Losses:
        """The losses of a prediction (`RetinaNetHead.losses`), whatever `parts` are trained: all are the head's."""
        return self.head.losses(stages.anchors, targets, mean)

    def stages(self, batch: Batch, config: PostprocessConfig | None = None) -> OneStageStages:
        """The forward pass with everything it computed; `config` replaces the model's own post-processing."""
        return self.stages_from(self.features(batch), batch, config or self.config.postprocess)

    def stages_from(self, maps: Maps, batch: Batch, config: PostprocessConfig) -> OneStageStages:
        """The same from the feature maps on."""
        predictions = self.predict(maps, batch)
        candidates = self.head.select(predictions, batch.sizes)
        return OneStageStages(maps, predictions, candidates, self.head.postprocess(candidates, batch.sizes, config))

    def suppress_again(
        self, stages: OneStageStages, sizes: Int[Tensor, "n 2"], config: PostprocessConfig
    ) -> OneStageStages:
        """The stages from the candidates on, with NMS on the CPU, where it has no limit."""
        candidates = Candidates(*(value.cpu() for value in stages.proposals))
        detections = self.head.postprocess(candidates, sizes.cpu(), config).each(lambda x: x.to(sizes.device))
        return stages._replace(detections=detections)

    def features(self, batch: Batch) -> Maps:
        """Feature maps of the normalised images."""
        return self.backbone(self.normalize(batch))

    def predict(self, maps: Maps, batch: Batch) -> AnchorPredictions:
        """The head's predictions for every anchor. Raises UsageError where proposals come with the batch."""
        if batch.proposals is not None:
            raise UsageError("This detector has one stage: it takes no proposals from elsewhere.")
        return self.head(maps, batch.canvas, batch.sizes)
