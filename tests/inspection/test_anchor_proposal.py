"""Clusters of sizes and ratios, and whether they reach more."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from twostage import Dataset
from twostage.cli.flags import build as options_of
from twostage.data.recognise import open_dataset
from twostage.inspection.anchor_proposal import (
    AnchorProposal,
    _distances,
    cluster_ratios,
    cluster_sizes,
    kmeans_iou,
    objects_needed,
    propose_anchors,
)
from twostage.inspection.anchor_reach import AnchorModelConfig, anchor_positions, best_iou, shares, used_objects
from twostage.models.build import anchors_of
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.training.options import TrainOptions


def proposal_for(dataset: Dataset, config: AnchorModelConfig) -> tuple[AnchorProposal | None, np.ndarray]:
    positions = anchor_positions(dataset, config)
    present = best_iou(positions, config)
    return propose_anchors(positions, config, used_objects(dataset), present), present


def tiny(**fields: object) -> AnchorModelConfig:
    return cast(AnchorModelConfig, configure(named("faster_rcnn_tiny_fpn"), fields))


def test_the_distance_is_one_minus_iou_on_one_centre() -> None:
    sides = np.random.default_rng(0).uniform(1, 90, (20, 2))

    def centred(pairs: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([-pairs, pairs], axis=1) / 2)

    expected = 1 - box_iou(centred(sides), centred(sides[:7])).numpy()
    assert _distances(sides, sides[:7]) == pytest.approx(expected)


def test_groups_are_found_whatever_their_number() -> None:
    """Few large boxes count as much as many small ones of the same spread."""
    rng = np.random.default_rng(1)
    centres, counts = np.array([[9.0, 10.0], [40.0, 35.0], [200.0, 210.0]]), (300, 40, 30)
    sides = np.concatenate(
        [centre * rng.uniform(0.95, 1.05, (count, 2)) for centre, count in zip(centres, counts, strict=True)]
    )
    found = kmeans_iou(sides, 3)
    assert found == pytest.approx(centres, rel=0.02)
    assert (kmeans_iou(sides, 3) == found).all()


@pytest.mark.parametrize("count", [1, 4])
def test_equal_boxes_and_a_single_one(count: int) -> None:
    for boxes in (1, 10):
        assert kmeans_iou(np.full((boxes, 2), 5.0), count).tolist() == [[5, 5]] * count


def test_sizes_ascend_over_levels_and_are_not_below_two_strides() -> None:
    sides = np.repeat([6.0, 50.0, 120.0], 20)
    assert cluster_sizes(sides, (4, 8, 16), [1, 1, 1]) == ((8,), (50,), (120,))
    assert cluster_sizes(sides, (4,), [3]) == ((8, 50, 120),)
    assert cluster_sizes(sides, (4, 8, 100), [1, 1, 1])[2] == (200,)


def test_ratios_are_height_over_width_and_fewer_where_equal() -> None:
    assert cluster_ratios(np.repeat([0.25, 1.0, 3.0], 10), 3) == (0.25, 1, 3)
    assert cluster_ratios(np.full(20, 2.0), 3) == (2,)


def test_anchors_for_objects_between_the_present_ones(make_blank: Callable[..., Dataset]) -> None:
    """Squares of 45 px lie between the anchors of 32 and 64 px: both have an IoU of about 0.5."""
    boxes = [[x, y, x + 45, y + 45] for x in range(0, 240, 60) for y in range(0, 240, 60)]
    dataset = make_blank([(320, 320)] * 4, [boxes] * 4)
    config = tiny(size=320)
    found, present = proposal_for(dataset, config)
    assert shares(present)["iou70"] == 0
    assert found is not None
    assert shares(found.iou)["iou70"] == 1
    assert found.iou == pytest.approx(best_iou(anchor_positions(dataset, config), configure(config, found.fields())))


def test_nothing_is_proposed_without_gain_or_from_few_objects(make_blank: Callable[..., Dataset]) -> None:
    config = tiny(size=320)
    fitting = [[x, y, x + 64, y + 64] for x in range(0, 240, 80) for y in range(0, 240, 80)]
    assert proposal_for(make_blank([(320, 320)] * 6, [fitting] * 6), config)[0] is None
    between = [[0, 0, 45, 45]] * (objects_needed(config) - 1)
    assert proposal_for(make_blank([(320, 320)], [between]), config)[0] is None
    assert proposal_for(make_blank([(320, 320)], [[]]), config)[0] is None


@pytest.mark.parametrize("model", ["faster_rcnn_lite0_fpn", "faster_rcnn_tiny", "retinanet_tiny_fpn"])
def test_flags_are_those_of_train(model: str, real_data: Path) -> None:
    """The printed flags give the anchors that were measured, and these fit the model."""
    dataset = open_dataset(real_data / "blood-cells", split="val")
    config = cast(AnchorModelConfig, configure(named(model), {"size": 400}))
    found, present = proposal_for(dataset, config)
    assert found is not None
    assert shares(found.iou)["iou70"] > shares(present)["iou70"]
    words = shlex.split(found.flags())
    assert set(words[::2]) == {"--set"}
    given = tuple(word.removeprefix("model.") for word in words[1::2])
    options = options_of(TrainOptions, {"data": Path("data"), "model": model, "model_fields": given})
    changed = configure(config, options.given_fields)
    positions = anchor_positions(dataset, changed)
    assert best_iou(positions, changed) == pytest.approx(found.iou)
    assert anchors_of(changed, positions.strides).per_position
