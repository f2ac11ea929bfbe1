"""What a two-stage detector computes about an image and its labels: the evidence that a label audit ranks by.

The image is predicted as it is and mirrored. In both views the head scores the RPN's proposals, and the labels' own
boxes, which take the place of proposals. Letters: G labels, P regions, N candidates, K classes, V views and stages.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from twostage.data.batch import Batch, GivenProposals
from twostage.data.dataset import Dataset
from twostage.errors import DataError, UsageError
from twostage.inference.predictor import make_batch, on_originals
from twostage.inference.prepare import PreparedModel
from twostage.inference.runner import Runner
from twostage.models.heads.postprocess import Scored
from twostage.models.proposals.rpn import Proposals
from twostage.models.regions.pooling import Maps
from twostage.models.two_stage import TwoStage, as_proposals
from twostage.ops.boxes import iou
from twostage.ops.nms import nms

SAME = 0.5  # IoU from which on two boxes are taken for one object's
MOST = 300  # candidates of an image
LOWEST = 0.02  # foreground probability of a candidate, unless the RPN is sure
SURE = 0.5  # the RPN's probability from which on a region is a candidate whatever the head says
_BLOCK = 1000  # labels that go through the head together


class ViewEvidence(NamedTuple):
    """Of one view, boxes on the pixels of the image.

    `objectness` are the RPN's probabilities, None where proposals come from elsewhere. `label_scores` are the head's
    probabilities at each label's own box, `label_boxes` where each stage moves that box.
    """

    boxes: Float[np.ndarray, "p 4"]
    scores: Float[np.ndarray, "p k"]
    objectness: Float[np.ndarray, " p"] | None
    label_scores: Float[np.ndarray, "g k"]
    label_boxes: Float[np.ndarray, "g v 4"]


class Evidence(NamedTuple):
    """Of one image: candidates, best first, and its labels.

    A candidate is a region that overlaps no better one by an IoU above 0.5, whatever its class. `scores` are its
    probabilities, `mirrored` the highest ones, class by class, of the mirrored view at its place (0 where that has no
    box), `objectness` the RPN's probability (0 without an RPN). Of a label: `label_scores` at its own box, the mean of
    the views, `label_boxes` where each view and stage moves it.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n k"]
    mirrored: Float[np.ndarray, "n k"]
    objectness: Float[np.ndarray, " n"]
    label_scores: Float[np.ndarray, "g k"]
    label_boxes: Float[np.ndarray, "g v 4"]


def two_stage_runner(runner: Runner) -> PreparedModel:
    """The runner, if it is one of a model with two stages. Raises UsageError for others."""
    if not isinstance(runner, PreparedModel):
        raise UsageError("The audit runs the head on the labels' boxes, and an exported file cannot: give its weights.")
    if not isinstance(runner.model, TwoStage):
        raise UsageError("The audit compares two stages, and this detector has one: give a two-stage detector.")
    return runner


def evidence(runner: PreparedModel, image: UInt8[np.ndarray, "h w 3"], labels: "LabelBoxes") -> Evidence:
    """The evidence about an image (RGB, upright) and its labels."""
    plain, mirrored = (view_evidence(runner, image, labels, mirror=mirror) for mirror in (False, True))
    return merged(plain, mirrored)


class LabelBoxes(NamedTuple):
    """Boxes (xyxy pixels) and class ids 0..K-1."""

    boxes: Float[np.ndarray, "g 4"]
    labels: Int[np.ndarray, " g"]


@torch.inference_mode()
def view_evidence(
    runner: PreparedModel, image: UInt8[np.ndarray, "h w 3"], labels: LabelBoxes, *, mirror: bool
) -> ViewEvidence:
    """The evidence of the image as it is, or of its mirror image; boxes are those of the image in both cases.

    Raises DataError where the scores are not finite.
    """
    width = image.shape[1]
    pixels = image[:, ::-1].copy() if mirror else image  # a copy even of one column: torch reads no reversed one
    there = _mirrored(labels.boxes, width) if mirror else labels.boxes
    batch = make_batch([pixels], runner.config)
    model, on_device = cast(TwoStage, runner.model), batch.to(runner.device)
    post = runner.config.postprocess
    with runner.computing():
        maps = runner.features(on_device)
        # Suppression on a GPU is taken as it is, also where it has not converged: a box too many does no harm here.
        _, proposals = model.propose(maps, on_device)
        predictions = model.head.predict(model.head.fuse_features(maps), proposals, on_device.sizes)
        scored = model.head.scored(predictions, proposals, post)
        scores = _probabilities(scored)
        boxes = _boxes(scored, scores.argmax(dim=1), on_device)
        label_scores, label_boxes = _of_labels(runner, maps, on_device, LabelBoxes(there, labels.labels))
    valid = proposals.valid[0].cpu().numpy()
    if not (scores.cpu()[valid].isfinite().all() and label_scores.isfinite().all()):
        raise DataError(
            "The detector's scores are no numbers (NaN), as after a training that diverged: nothing can be judged by "
            "them. Give other weights."
        )
    objectness = None if model.rpn is None or batch.proposals is not None else proposals.scores[0].float().sigmoid()
    back: Callable[[np.ndarray], np.ndarray] = (lambda b: _mirrored(b, width)) if mirror else (lambda b: b)
    return ViewEvidence(
        boxes=back(boxes.numpy()[valid]),
        scores=scores.cpu().numpy()[valid],
        objectness=None if objectness is None else objectness.cpu().numpy()[valid],
        label_scores=label_scores.cpu().numpy(),
        label_boxes=back(label_boxes.numpy()),
    )


def merged(plain: ViewEvidence, mirrored: ViewEvidence) -> Evidence:
    """The candidates of the image as it is, with what the mirrored view says about each, and both views of labels."""
    sure = np.zeros(len(plain.boxes)) if plain.objectness is None else plain.objectness
    foreground = plain.scores.max(axis=1, initial=0.0)
    # Those that the head calls background come last, ordered by the RPN.
    rank = foreground + 1e-3 * sure
    competes = (foreground >= LOWEST) | (sure >= SURE)
    kept = nms(
        torch.from_numpy(plain.boxes)[None].float(),
        torch.from_numpy(rank)[None].float(),
        None,
        torch.from_numpy(competes)[None],
        iou=SAME,
        top=min(MOST, max(1, len(rank))),
    )
    index = kept.index[0][kept.valid[0]].numpy() if len(rank) else np.zeros(0, np.int64)
    boxes = plain.boxes[index]
    return Evidence(
        boxes=boxes,
        scores=plain.scores[index],
        mirrored=_highest_at(boxes, mirrored),
        objectness=sure[index],
        label_scores=(plain.label_scores + mirrored.label_scores) / 2,
        label_boxes=np.concatenate([plain.label_boxes, mirrored.label_boxes], axis=1),
    )


def data_evidence(
    runner: PreparedModel,
    dataset: Dataset,
    images: Sequence[int],
    after_image: Callable[[], None] = lambda: None,
) -> dict[int, Evidence]:
    """The evidence about images of a data set, by their indices."""
    gathered = {}
    for index in images:
        objects = dataset.objects(index)
        gathered[index] = evidence(runner, dataset.image(index), LabelBoxes(objects.boxes, objects.labels))
        after_image()
    return gathered


def _of_labels(
    runner: PreparedModel, maps: Maps, batch: Batch, labels: LabelBoxes
) -> tuple[Float[Tensor, "g k"], Float[Tensor, "g v 4"]]:
    """The head's probabilities at the labels' own boxes, and where its stages move them, on the image's pixels."""
    model, post = cast(TwoStage, runner.model), runner.config.postprocess
    scale = batch.before.factors.cpu().flip(1).repeat(1, 2)
    boxes = torch.from_numpy(np.asarray(labels.boxes, dtype=np.float32)) / scale
    classes = torch.from_numpy(np.asarray(labels.labels, dtype=np.int64)).to(batch.sizes.device)
    scores, moved = [], []
    for first in range(0, len(boxes), _BLOCK):
        some = boxes[first : first + _BLOCK].to(batch.sizes.device)[None]
        given = GivenProposals(some, torch.zeros_like(some[..., 0]), torch.ones_like(some[..., 0], dtype=torch.bool))
        proposals: Proposals = as_proposals(given, batch.sizes)._replace(originals=batch.originals)
        predictions = model.head.predict(model.head.fuse_features(maps), proposals, batch.sizes)
        scored = model.head.scored(predictions, proposals, post)
        scores.append(_probabilities(scored).cpu())
        later = [on_originals(stage.boxes.cpu(), batch)[0] for stage in predictions[1:]]
        last = _boxes(scored, classes[first : first + _BLOCK], batch)
        moved.append(torch.stack([*later, last], dim=1))
    if not scores:
        return torch.zeros(0, model.num_classes), torch.zeros(0, max(1, len(model.head.box_heads)), 4)
    return torch.cat(scores), torch.cat(moved)


def _probabilities(scored: Scored) -> Float[Tensor, "p k"]:
    scores = scored.scores[0].float()
    return scores.sigmoid() if scored.logits else scores


def _boxes(scored: Scored, labels: Int[Tensor, " p"], batch: Batch) -> Float[Tensor, "p 4"]:
    """The regions moved by the deltas of a class each, on the pixels of the image."""
    each = torch.arange(len(labels), device=labels.device)[None]
    return on_originals(scored.boxes(each, labels[None], batch.sizes).cpu(), batch)[0]


def _highest_at(boxes: Float[np.ndarray, "n 4"], view: ViewEvidence) -> Float[np.ndarray, "n k"]:
    """Class by class the highest score of a view's boxes that overlap each box; 0 where none does."""
    overlap = iou(torch.from_numpy(boxes).float(), torch.from_numpy(view.boxes).float()).numpy() >= SAME
    return np.stack([(overlap * column).max(axis=1, initial=0.0) for column in view.scores.T], axis=1)


def _mirrored(boxes: Float[np.ndarray, "*n 4"], width: int) -> Float[np.ndarray, "*n 4"]:
    """Boxes of an image as those of its mirror image."""
    x1, y1, x2, y2 = np.moveaxis(np.asarray(boxes), -1, 0)
    return np.stack([width - x2, y1, width - x1, y2], axis=-1)
