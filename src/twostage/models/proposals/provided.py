"""Proposals for a model that does not propose by itself: for pictures as they come, and for a split of a data set."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from twostage.data.batch import GivenProposals, stack_proposals
from twostage.data.dataset import Dataset
from twostage.data.loader import PrecomputedProposals, scale_boxes
from twostage.data.proposals import ProposalSet, warn_few_proposals
from twostage.errors import UsageError
from twostage.models.proposals.sources import NAMES, ProposalConfig, Source, propose, ranks


def of_images(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], shapes: Sequence[tuple[int, int]], config: ProposalConfig
) -> GivenProposals | None:
    """Proposals of pictures (RGB), on their pixels once they are resized to `shapes` (height, width).

    None for a model that proposes by itself. Raises UsageError for one whose proposals come from a file.
    """
    if config.source == "network":
        return None
    source = source_of(config)
    found = []
    for image, shape in zip(images, shapes, strict=True):
        boxes = source(image)
        placed = scale_boxes(torch.from_numpy(boxes), (image.shape[0], image.shape[1]), shape)
        found.append(torch.cat([placed, torch.from_numpy(ranks(len(boxes)))[:, None]], dim=1))
    return stack_proposals(found, config.keep_test)


def of_split(
    dataset: Dataset,
    config: ProposalConfig,
    read: Callable[[Dataset], ProposalSet] | None,
    *,
    count: int,
    after_image: Callable[[int, int], None] = lambda done, all: None,
) -> PrecomputedProposals | None:
    """Proposals of every image of a split: those that `read` brings, or what the model's source computes or has kept.

    None where the model proposes by itself and nothing else is wanted. Raises UsageError where a file is needed.
    """
    if read is None and config.source == "network":
        return None
    found = read(dataset) if read else propose(source_of(config), dataset, after_image=after_image)
    warn_few_proposals(found, dataset, count)
    return PrecomputedProposals(found, count)


def source_of(config: ProposalConfig) -> Source:
    """The source that a model's fields name. Raises UsageError where that is a file."""
    if config.source not in NAMES:
        raise UsageError(
            "This detector's proposals come from a file. `train` and `eval` take one by --proposals; elsewhere have "
            "them computed: --set model.proposals=selective_search."
        )
    return Source(config.source)
