"""Stages written as a graph's outputs and read back are the same, whichever order a runtime lists candidates in."""

from typing import Any

import numpy as np
import pytest
import torch
from inspecting import FAMILIES, lively
from torch import Tensor
from torch.utils._pytree import tree_leaves

from twostage.data.batch import Batch
from twostage.data.scenes import HARD, make_scene
from twostage.inference.graphs import AnyStages
from twostage.inference.predictor import make_batch
from twostage.inference.signature import outputs_of, stage_outputs_of, stages_of
from twostage.models.one_stage import OneStageStages

EXPORTABLE = [name for name, family in FAMILIES.items() if family not in ("R-CNN", "SPPnet")]


def forward(name: str, **fields: object) -> tuple[AnyStages, Batch]:
    """The stages of two images of different shapes, on one canvas."""
    detector = lively(name, **fields)
    images = [make_scene(0, 0, number, style=HARD).image[: 256 - 60 * number] for number in range(2)]
    batch = make_batch(images, detector.config)
    return detector.prepared.stages(batch), batch


def outputs(stages: AnyStages) -> dict[str, Tensor]:
    """All that a graph gives of them."""
    return {**outputs_of(stages.detections), **stage_outputs_of(stages)}


def assert_equal(found: Any, wanted: Any, valid: Tensor) -> None:
    """In all columns, where they are valid."""
    for a, b in zip(found, wanted, strict=True):
        if isinstance(a, Tensor) and a.shape[:2] == valid.shape:
            torch.testing.assert_close(a[valid], b[valid], rtol=0, atol=0)


@pytest.mark.parametrize("name", EXPORTABLE)
def test_stages_come_back_as_they_were(name: str) -> None:
    """Those of a batch with its images before they were resized, and its proposals with their scores."""
    stages, batch = forward(name)
    found = stages_of(outputs(stages), batch)
    assert_equal(found.detections, stages.detections, stages.detections.valid)
    assert_equal(found.proposals, stages.proposals, stages.proposals.valid)
    if not isinstance(stages, OneStageStages):
        assert not isinstance(found, OneStageStages)
        assert found.proposals.originals is not None
        for a, b in zip(tree_leaves(found.predictions), tree_leaves(stages.predictions), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        for a, b in zip(found.proposals.originals, batch.before, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_candidates_that_are_listed_level_by_level_are_ranked() -> None:
    """As runtimes list them: a detection still names its own candidate."""
    stages, batch = forward("retinanet_tiny_fpn")
    out = outputs(stages)
    place = out["proposal_anchors"].argsort(dim=1, stable=True)
    assert (place != torch.arange(place.shape[1])).any(dim=1).all()
    for name in ("proposal_scores", "proposal_anchors", "proposal_labels", "proposal_valid"):
        out[name] = out[name].gather(1, place)
    out["proposal_boxes"] = out["proposal_boxes"].gather(1, place[..., None].expand(-1, -1, 4))
    out["proposal_index"] = place.argsort(dim=1).gather(1, out["proposal_index"])
    found = stages_of(out, batch)
    np.testing.assert_array_equal(found.proposals.scores, stages.proposals.scores)
    assert_equal(found.proposals, stages.proposals, stages.proposals.valid)
    assert_equal(found.detections, stages.detections, stages.detections.valid)
