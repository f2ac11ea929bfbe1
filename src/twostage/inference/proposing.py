"""The proposals of a trained network on a whole split, as any other source gives them."""

from collections.abc import Callable

import numpy as np
import torch

from twostage.data.dataset import Dataset
from twostage.data.loader import evaluation_batches
from twostage.data.proposals import ProposalSet
from twostage.errors import UsageError
from twostage.models.two_stage import TwoStage


@torch.inference_mode()
def network_proposals(
    model: TwoStage,
    dataset: Dataset,
    *,
    batch: int = 1,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    after_image: Callable[[int, int], None] = lambda done, all: None,
) -> ProposalSet:
    """What the model's proposal network proposes, at most `rpn_keep_test` boxes an image, with its probabilities.

    Boxes are on the original images; of several processes (`rank` of `world`) each has those of its share of the
    images, and none for the others. The device's suppression is taken as it is, also where its chains were too long to
    come to an end: a box too many does no harm here. Raises UsageError for a model without a proposal network.
    """
    if model.rpn is None:
        raise UsageError("The model has no network that proposes: it takes its proposals from elsewhere.")
    if not model.second.has_losses:
        raise UsageError("This detector has one stage: what it proposes are detections. Propose by one of two stages.")
    fields = model.fields
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros((0, 4)), np.zeros(0))] * len(dataset)
    done = 0
    for loaded in evaluation_batches(
        dataset,
        resize=fields.resizing,
        batch=batch,
        workers=workers,
        divisor=fields.divisor,
        rank=rank,
        world=world,
    ):
        there = loaded.batch.to(model.mean.device)
        proposals = model.rpn.propose(model.rpn(model.features(there), there.canvas, there.sizes), there.sizes)
        boxes, scores, valid = (value.float().cpu() for value in (proposals.boxes, proposals.scores, proposals.valid))
        for i, index in enumerate(loaded.indices.tolist()):
            height, width = dataset.sizes[index].tolist()
            scale = torch.tensor([height, width]) / loaded.batch.sizes[i]
            own = boxes[i] * scale.flip(0).repeat(2)
            own = own.minimum(torch.tensor([width, height] * 2))
            kept = valid[i] > 0
            found[index] = own[kept].numpy(), scores[i][kept].sigmoid().numpy()
        done += len(loaded.indices)
        after_image(done, len(dataset))
    return ProposalSet.of(found, f"the proposal network of a {type(model.backbone).__name__} detector")
