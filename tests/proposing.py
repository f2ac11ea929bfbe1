"""Random proposals for models that do not propose by themselves."""

from dataclasses import replace

import torch

from twostage.data.batch import Batch, GivenProposals
from twostage.models.two_stage import TwoStage


def given(batch: Batch, count: int, seed: int = 0) -> GivenProposals:
    """So many boxes on each image, the last one of each padding."""
    g = torch.Generator().manual_seed(seed)
    n = len(batch.sizes)
    corner, side = (torch.rand(n, count, 2, generator=g) for _ in range(2))
    limit = batch.sizes.flip(1)[:, None].to(corner.dtype)
    corner, side = corner * limit * 0.7, (0.1 + 0.2 * side) * limit
    scores = torch.rand(n, count, generator=g).sort(dim=1, descending=True).values
    valid = torch.ones(n, count, dtype=torch.bool)
    valid[:, -1] = False
    return GivenProposals(torch.cat([corner, corner + side], dim=2), scores, valid)


def with_proposals(model: TwoStage, batch: Batch) -> Batch:
    """The batch as the model takes it."""
    if model.rpn is not None:
        return batch
    return replace(batch, proposals=given(batch, model.config.proposals.keep_test))
