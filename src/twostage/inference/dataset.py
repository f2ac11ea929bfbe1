"""Predicting over a split of a data set, for evaluation, validation and proposals."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from twostage.data.dataset import Dataset
from twostage.data.loader import Loaded, PrecomputedProposals, evaluation_batches
from twostage.data.proposals import ProposalSet
from twostage.data.stuff import Stuff
from twostage.distributed import SINGLE_PROCESS, Processes
from twostage.errors import UsageError
from twostage.evaluation.results import Accumulator
from twostage.inference.predictor import naming, on_originals, to_arrays
from twostage.inference.prepare import PreparedModel
from twostage.inference.runner import Runner
from twostage.inference.test_time_augmentation import TestTimeAugmentation, detect_augmented
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.two_stage import TwoStage


def batches_of(
    model: Runner,
    dataset: Dataset,
    *,
    batch: int,
    workers: int,
    processes: Processes = SINGLE_PROCESS,
    proposals: PrecomputedProposals | None = None,
    masks: bool = False,
    stuff: Stuff | None = None,
) -> Iterator[Loaded]:
    """The split as the model takes it; each of several processes gets its share of the images."""
    image = model.config.image
    return evaluation_batches(
        dataset,
        resize=image.resizing,
        batch=batch,
        workers=workers,
        divisor=image.divisor,
        rank=processes.rank,
        world=processes.world,
        proposals=proposals,
        masks=masks,
        stuff=stuff,
    )


def detect_split(
    model: Runner,
    dataset: Dataset,
    batches: Iterator[Loaded],
    detect: Callable[[Loaded], BatchDetections],
) -> Accumulator:
    """The detections that `detect` returns for each batch, on the original images."""
    gathered = Accumulator()
    for loaded in batches:
        indices = loaded.indices.tolist()
        height, width = loaded.batch.before.sizes[0].tolist()
        with naming(dataset.file_name(indices[0]), (height, width)):
            detections = detect(loaded)
        arrays = to_arrays(detections, loaded.batch, model.config)
        for index, one in zip(indices, arrays, strict=True):
            gathered.add(index, one["boxes"], one["scores"], one["class_ids"], one["masks"])
    return gathered


def detect_split_augmented(
    model: Runner,
    dataset: Dataset,
    config: PostprocessConfig,
    views: TestTimeAugmentation,
    batch: int,
    processes: Processes,
) -> Accumulator:
    """The same with test-time augmentation, image by image; `batch` counts views."""
    gathered = Accumulator()
    for index in range(processes.rank, len(dataset), processes.world):
        image = dataset.image(index)
        path = dataset.file_name(index)
        one = detect_augmented(model, image, dataset.names, postprocess=config, views=views, batch=batch, path=path)
        gathered.add(index, one.boxes, one.scores, one.class_ids, one.masks)
    return gathered


@torch.inference_mode()
def propose_split(
    model: PreparedModel,
    dataset: Dataset,
    *,
    batch: int = 1,
    workers: int = 0,
    processes: Processes = SINGLE_PROCESS,
    top: int | None = None,
    keep: int | None = None,
    after_image: Callable[[int, int], None] = lambda done, all: None,
) -> ProposalSet:
    """The RPN's proposals for every image of a split, with their probabilities (`RPN.propose` has `top` and `keep`).

    Boxes are on the original images; each of several processes has those of its share of the images, and none for the
    others. Suppression on a GPU is taken as it is, also where it has not converged: a box too many does no harm here.
    Raises UsageError for a model without an RPN.
    """
    net = model.model
    if not isinstance(net, TwoStage):
        raise UsageError("This detector has one stage and no RPN. Propose with a two-stage detector.")
    if net.rpn is None:
        raise UsageError("The model has no RPN: it takes its proposals from elsewhere.")
    out: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros((0, 4)), np.zeros(0))] * len(dataset)
    done = 0
    for loaded in batches_of(model, dataset, batch=batch, workers=workers, processes=processes):
        there = loaded.batch.to(model.device)
        with model.computing():
            predictions = net.rpn(model.features(there), there.canvas, there.sizes)
        proposals = net.rpn.propose(predictions, there.sizes, there.originals, top=top, keep=keep).to("cpu")
        indices = loaded.indices.tolist()
        boxes = on_originals(proposals.boxes, loaded.batch)
        for i, index in enumerate(indices):
            kept = proposals.valid[i]
            out[index] = boxes[i][kept].numpy(), proposals.scores[i][kept].float().sigmoid().numpy()
        done += len(indices)
        after_image(done, len(dataset))
    return ProposalSet.of(out, f"the RPN of a {type(net.backbone).__name__} detector")
