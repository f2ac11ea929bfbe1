"""The record of one prediction: everything its forward pass computed, and on demand what became of every box.

The forward pass is the one that `predict` runs. What follows from it, such as which box suppressed which, is worked out
when it is asked for, so that a trace costs no more than a prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils._pytree import tree_map

from twostage.data.batch import Batch, Targets, stack_targets
from twostage.detections import Detections
from twostage.errors import UsageError
from twostage.inference.exported import ExportedModel
from twostage.inference.graphs import AnyStages
from twostage.inference.predictor import make_batch, naming, on_originals, to_arrays
from twostage.inference.prepare import PreparedModel
from twostage.inference.runner import Runner
from twostage.inspection.fates import AnchorFates, PairFates, anchor_fates, pair_fates
from twostage.inspection.learning import Learning, learning
from twostage.models.build import Model, build
from twostage.models.config import DetectorConfig
from twostage.models.heads.postprocess import AboveThreshold, PostprocessConfig, Scored, above_threshold
from twostage.models.one_stage import OneStage, OneStageStages
from twostage.models.two_stage import Stages, TwoStage
from twostage.weights.fit import Unfilled

_SHOWN = 0.5  # the score from which detections are shown in a notebook, as `twostage inspect` does

Target = tuple[Float[np.ndarray, "g 4"], Int[np.ndarray, " g"]]
"""The objects of an image: boxes (xyxy pixels), and their class ids 0..K-1."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One prediction of one image (N = 1), stage by stage.

    `stages` are those of the forward pass on the CPU: maps, predictions of every anchor, proposals, predictions of
    every region, detections. Their boxes are on the pixels of `batch`, the resized image on its canvas; `to_image`
    brings boxes to those of `image`. `detections` are what `predict` gives with the model's own threshold as `conf`.
    """

    image: UInt8[np.ndarray, "h w 3"]
    names: tuple[str, ...]
    config: DetectorConfig
    batch: Batch
    stages: AnyStages
    detections: Detections
    model: Model  # whose steps are run again; of an exported file without its weights
    targets: Targets | None = None

    @cached_property
    def anchors(self) -> AnchorFates | None:
        """What became of every anchor of the RPN; None where proposals come from elsewhere, or of one stage."""
        stages, model = self.stages, self.model
        if not isinstance(stages, Stages) or stages.anchors is None or model.rpn is None:
            return None
        originals = stages.proposals.originals
        return anchor_fates(model.rpn, stages.anchors, stages.proposals, self.batch.sizes, originals)

    @cached_property
    def scored(self) -> Scored | None:
        """Final scores of every region and class, and what their boxes are made of; None of one stage."""
        stages = self.stages
        if not isinstance(stages, Stages):
            return None
        head = cast(TwoStage, self.model).head
        return head.scored(stages.predictions, stages.proposals, self.config.postprocess)

    @cached_property
    def pairs(self) -> PairFates:
        """What became of every pair of a region and a class above the threshold; of one stage, of its candidates."""
        return pair_fates(self.above_threshold(self.config.postprocess), self.config.postprocess)

    def above_threshold(self, config: PostprocessConfig) -> AboveThreshold:
        """The pairs that enter the last suppression, under this post-processing."""
        stages = self.stages
        if isinstance(stages, OneStageStages):
            return cast(OneStage, self.model).head.above_threshold(stages.proposals, config)
        head = cast(TwoStage, self.model).head
        return above_threshold(head.scored(stages.predictions, stages.proposals, config), self.batch.sizes, config)

    @cached_property
    def learning(self) -> Learning:
        """What each anchor and region would learn from the targets. Raises UsageError without targets."""
        if self.targets is None:
            raise UsageError("target is not given: trace(image, target) shows what anchors and regions would learn.")
        return learning(self.model, self.stages, self.batch.sizes, self.targets)

    def to_image(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        """Boxes on the pixels of the batch as boxes on those of the image."""
        return on_originals(boxes[None], self.batch)[0]

    def anchors_on_image(self) -> Float[Tensor, "a 4"] | None:
        """All anchors before they are moved, on the pixels of the image, whose border they may cross; None without."""
        anchors = self.stages.anchors
        if anchors is None:
            return None
        return torch.cat(anchors.anchors) * self.batch.before.factors.flip(1).repeat(1, 2)

    def _repr_html_(self) -> str:
        """For notebooks: the inspector page in a frame."""
        from twostage.inspection.page.html import inline, page

        post = self.config.postprocess
        shown = replace(post, score_threshold=max(_SHOWN, post.score_threshold), soft_nms_min_score=None)
        return inline(page(self, shown))


@torch.inference_mode()
def trace(
    runner: Runner,
    image: UInt8[np.ndarray, "h w 3"],
    names: Sequence[str],
    *,
    path: str | None = None,
    target: Target | None = None,
) -> Trace:
    """The record of the prediction of an image (RGB, upright).

    `target` are its objects, for `Trace.learning`. Raises UsageError for an exported file that gives no stages.
    """
    config = runner.config
    batch = make_batch([image], config)
    targets = None if target is None else targets_of(target, batch, len(names))
    size, model = (image.shape[0], image.shape[1]), steps_of(runner, len(names))
    with naming(path, size):
        stages = runner.stages(batch)
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), tuple(names), size)
    begun = Trace(image, tuple(names), config, batch, stages, replace(none, path=path, image=image), model, targets)
    return finished(begun, runner, stages)


def finished(trace: Trace, runner: Runner, stages: AnyStages) -> Trace:
    """The trace with the stages of another forward pass, on the CPU, and its detections."""
    batch, config = trace.batch, trace.config
    if isinstance(runner, PreparedModel):
        stages = stages._replace(detections=runner.finish(stages, batch.sizes, config.postprocess))  # type: ignore[arg-type]
    stages = on_cpu(stages)
    found = replace(trace.detections, **to_arrays(stages.detections, batch, config)[0])
    return replace(trace, stages=stages, detections=found)


def steps_of(runner: Runner, num_classes: int) -> Model:
    """The model whose steps can be run again; of an exported file one without weights."""
    if isinstance(runner, PreparedModel):
        return runner.model
    assert isinstance(runner, ExportedModel)
    with Unfilled():
        return build(runner.config, num_classes).eval()


def on_cpu(stages: AnyStages) -> AnyStages:
    """The same stages on the CPU."""

    return cast(AnyStages, tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, stages))


def targets_of(target: Target, batch: Batch, num_classes: int) -> Targets:
    """Objects on the pixels of an image as targets on those of the batch. Raises UsageError for what are no objects."""
    boxes, labels = (np.asarray(part) for part in target)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise UsageError(f"target: {boxes.shape} boxes and {labels.shape} class ids; give [g, 4] and one id for each.")
    for place, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        x1, y1, x2, y2 = box
        if not (x1 < x2 and y1 < y2 and np.isfinite(box).all()):
            raise UsageError(f"target: box {place} is {box}; give finite x1 < x2 and y1 < y2, in pixels.")
        if label not in range(num_classes):
            raise UsageError(f"target: the class id of box {place} is {label}; there are 0 to {num_classes - 1}.")
    _, factors, _ = batch.before
    there = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4) / factors.flip(1).repeat(1, 2)
    return stack_targets([there], [torch.as_tensor(labels, dtype=torch.int64)], [0])
