"""A detector as a configuration and tensors, so that one value or one order of rows can be another."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from twostage.data.batch import Batch
from twostage.detector import Detector
from twostage.evaluation.results import Accumulator, Results
from twostage.inference.predictor import make_batch, to_arrays
from twostage.models.build import Model, build
from twostage.models.config import DetectorConfig
from twostage.models.heads.postprocess import BatchDetections
from twostage.models.regions.pooling import Maps
from twostage.weights.fit import Unfilled, load_all

Pixels = UInt8[np.ndarray, "_ _ 3"]


class Variant(NamedTuple):
    """A detector before it is built."""

    config: DetectorConfig
    state: Mapping[str, Tensor]
    num_classes: int

    def build(self) -> Model:
        """The model in evaluation mode, with nothing folded and no fast forms; it shares the tensors."""
        with Unfilled():
            model = build(self.config, self.num_classes)
        load_all(model, self.state, "the detector", assign=True)
        return model.eval()


def variant_of(detector: Detector) -> Variant:
    """The detector's own configuration and tensors."""
    model = detector.model
    return Variant(model.config, model.state_dict(), len(detector.names))


@torch.inference_mode()
def detect(model: Model, images: Sequence[Pixels], batch: int = 1) -> Results:
    """The detections of every image (RGB) on its own pixels, so many images on one canvas."""
    gathered = Accumulator()
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        of_batch = make_batch(some, model.config)
        _add(gathered, model, start, of_batch, model(of_batch))
    return gathered.results()


@torch.inference_mode()
def detect_from(model: Model, maps: Sequence[Maps], images: Sequence[Pixels]) -> Results:
    """The same one image at a time from the feature maps of each image on."""
    gathered = Accumulator()
    for place, (image, of_image) in enumerate(zip(images, maps, strict=True)):
        batch = make_batch([image], model.config)
        detections = model.stages_from(of_image, batch, model.config.postprocess).detections
        _add(gathered, model, place, batch, detections)
    return gathered.results()


def _add(gathered: Accumulator, model: Model, start: int, batch: Batch, found: BatchDetections) -> None:
    for place, one in enumerate(to_arrays(found, batch, model.config), start):
        gathered.add(place, one["boxes"], one["scores"], one["class_ids"], one["masks"])
