"""What a prediction needs of that which runs a detector: a prepared model, or an exported file in its runtime."""

from typing import Protocol, runtime_checkable

import torch

from twostage.data.batch import Batch
from twostage.inference.graphs import AnyStages
from twostage.models.config import DetectorConfig
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig


@runtime_checkable
class Runner(Protocol):
    """Batches in, detections out."""

    config: DetectorConfig
    device: torch.device

    def detect(self, batch: Batch, config: PostprocessConfig) -> BatchDetections:
        """Detections of a batch, on the CPU."""
        ...

    def stages(self, batch: Batch) -> AnyStages:
        """Every stage of a prediction, on the pixels of the batch."""
        ...

    def split(self, batch: Batch) -> list[Batch]:
        """The images that are computed together."""
        ...
