"""The tail in JavaScript against the library, on random cases with many ties."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twostage.inspection.page.html import text
from twostage.models.heads.postprocess import (
    AboveThreshold,
    BatchDetections,
    PostprocessConfig,
    Scored,
    above_threshold,
    suppress,
)
from twostage.models.proposals.rpn import Proposals, Ranked, _best_of_levels
from twostage.ops.deltas import BoxCoder
from twostage.ops.nms import nms

CASES = 1000
SIZES = torch.tensor([[90, 120]])


@pytest.fixture(scope="module")
def tail(browser: Any) -> Any:
    """A page that holds nothing but the tail."""
    page = browser.new_page()
    page.add_script_tag(content=text("tail.js"))
    yield page
    page.close()


def boxes_of(rng: np.random.Generator, count: int) -> Tensor:
    """Boxes that overlap a lot; some twice, some on whole pixels, some empty, some inverted."""
    corner = rng.uniform(-5, 80, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 60, (count, 2))], axis=1).astype(np.float32)
    whole = rng.random(count) < 0.5
    boxes[whole] = boxes[whole].round(-1)
    again = rng.random(count) < 0.2
    boxes[again] = boxes[rng.integers(0, count, int(again.sum()))]
    if rng.random() < 0.1:
        boxes[rng.integers(0, count)] = (30, 30, 10, 10)
    return torch.from_numpy(boxes)


def scores_of(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Scores from 0 to 1, in half of the cases of a few values only."""
    scores = rng.random(shape).astype(np.float32)
    return torch.from_numpy(scores.round(1) if rng.random() < 0.5 else scores)


def threshold(rng: np.random.Generator, scores: Tensor) -> float:
    """A threshold; sometimes one that a score has exactly."""
    return float(rng.choice(scores.numpy().ravel())) if rng.random() < 0.3 else float(rng.uniform(0, 0.9))


def settings_of(config: PostprocessConfig) -> dict[str, Any]:
    """The settings as the page has them."""
    return {
        **{"score": config.score_threshold, "nms": config.nms, "across": config.nms_across_classes},
        **{"soft": config.soft_nms, "sigma": config.soft_nms_sigma, "softFloor": config.soft_nms_min_score},
        **{"most": config.max_det, "minSide": config.min_box_size, "candidates": config.candidates},
    }


def config_of(rng: np.random.Generator, scores: Tensor) -> PostprocessConfig:
    """Settings of the last step."""
    score = threshold(rng, scores)
    return PostprocessConfig(
        score_threshold=score,
        nms=float(rng.choice([0.0, 0.3, 0.5, 0.7, 1.0, round(rng.random(), 3)])),
        nms_across_classes=bool(rng.random() < 0.3),
        soft_nms=rng.choice(["off", "off", "linear", "gaussian"]),
        soft_nms_sigma=float(rng.uniform(0.1, 1)),
        soft_nms_min_score=None if rng.random() < 0.5 else score * float(rng.random()),
        max_det=int(rng.integers(1, 40)),
        min_box_size=float(rng.choice([0.0, 1e-2, 5.0, 10.0])),
        candidates=None if rng.random() < 0.7 else int(rng.integers(1, 60)),
    )


def last_step_case(seed: int) -> tuple[dict[str, Any], AboveThreshold, BatchDetections]:
    """What the page has of a case, and what the library makes of it."""
    rng = np.random.default_rng(seed)
    regions, classes = int(rng.integers(1, 30)), int(rng.integers(1, 6))
    probabilities = scores_of(rng, (1, regions, classes))
    config = config_of(rng, probabilities)
    logits = config.soft_nms == "off" and rng.random() < 0.3
    valid = torch.from_numpy(rng.random((1, regions)) < 0.95)
    boxes = boxes_of(rng, regions)[None]
    proposals = Proposals(
        boxes,
        torch.zeros(1, regions),
        torch.zeros(1, regions, dtype=torch.int64),
        valid,
        torch.zeros(1, dtype=torch.bool),
    )
    kinds = classes if rng.random() < 0.5 else 1
    deltas = torch.from_numpy(rng.normal(0, 0.1, (1, regions, kinds, 4)).round(1).astype(np.float32))

    def scored(floor: float) -> Scored:
        values = probabilities.logit() if logits else probabilities
        limit = float(torch.tensor(floor, dtype=torch.float64).logit()) if logits else floor
        return Scored(values, deltas, proposals, BoxCoder(), limit, classes, logits=logits)

    above = above_threshold(scored(config.score_threshold), SIZES, config)
    shown = above_threshold(scored(0.0), SIZES, PostprocessConfig())
    count = int(shown.valid.sum())
    pairs = {
        "boxes": shown.boxes[0, :count].flatten().tolist(),
        "scores": [repr(x) for x in shown.scores[0, :count].tolist()],
        "labels": shown.labels[0, :count].tolist(),
        "regions": shown.regions[0, :count].tolist(),
        "logits": logits,
    }
    return {"pairs": pairs, "settings": settings_of(config)}, above, suppress(above, config)


RUN_LAST = """(cases) => cases.map(({pairs, settings}) => {
  const number = (x) => x === "inf" ? Infinity : x === "-inf" ? -Infinity : Number(x);
  const own = {...pairs, boxes: Float32Array.from(pairs.boxes), scores: Float32Array.from(pairs.scores, number)};
  const result = lastStep(own, null, settings), of = (list, column) => list.map((i) => column[i]);
  return {
    above: of(result.above, pairs.regions), aboveLabels: of(result.above, pairs.labels),
    regions: of(result.kept, pairs.regions), labels: of(result.kept, pairs.labels),
    scores: of(result.kept, Array.from(result.scores, String)),
    boxes: result.kept.map((i) => pairs.boxes.slice(4 * i, 4 * i + 4)),
  };
})"""


@pytest.mark.slow
def test_last_step_equals_the_library(tail: Any) -> None:
    """Threshold, minimum size, NMS of every kind, maximum: the same pairs in the same order; of logits too."""
    cases = [last_step_case(seed) for seed in range(CASES)]
    kinds = set()
    for (given, above, found), result in zip(cases, tail.evaluate(RUN_LAST, [case[0] for case in cases]), strict=True):
        passed, kept = above.valid[0], found.valid[0]
        assert result["above"] == above.regions[0][passed].tolist()
        assert result["aboveLabels"] == above.labels[0][passed].tolist()
        assert result["regions"] == found.proposals[0][kept].tolist(), given["settings"]
        assert result["labels"] == found.labels[0][kept].tolist()
        assert result["boxes"] == found.boxes[0][kept].tolist()
        scores = np.array([float(x.replace("Infinity", "inf")) for x in result["scores"]], dtype=np.float32)
        # numpy's exp differs from one CPU to the next in the last bits.
        tolerance = 2e-6 if given["settings"]["soft"] == "gaussian" else 0
        np.testing.assert_allclose(scores, found.scores[0][kept].numpy(), rtol=tolerance)
        kinds.add((given["settings"]["soft"], given["settings"]["across"], given["pairs"]["logits"]))
    assert len(kinds) == 8, "every kind of NMS was among the cases"


def ranked_case(seed: int) -> tuple[dict[str, Any], list[int], list[int]]:
    """Ranked anchors of several levels and tighter settings; the library's proposals, and what its NMS leaves."""
    rng = np.random.default_rng(seed)
    levels, top = int(rng.integers(1, 4)), int(rng.integers(2, 40))
    counts = [int(rng.integers(0, top + 1)) for _ in range(levels)]
    tighter, keep, iou = int(rng.integers(1, top + 1)), int(rng.integers(1, 60)), float(round(rng.random(), 2))
    boxes, anchors = boxes_of(rng, levels * top).view(levels, top, 4), torch.arange(levels * top).view(levels, top)
    scores = scores_of(rng, (levels, top)).sort(dim=1, descending=True).values
    there = torch.arange(top) < torch.tensor(counts)[:, None]
    scores = scores.masked_fill(~there, -torch.inf)
    valid = there & torch.from_numpy(rng.random((levels, top)) < 0.9)
    given = {
        "ranked": {
            "counts": counts,
            "boxes": boxes[there].flatten().tolist(),
            "scores": scores[there].tolist(),
            "valid": valid[there].int().tolist(),
        },
        "settings": {"top": tighter, "nms": iou, "keep": keep},
        "anchors": anchors[there].tolist(),
    }
    part = Ranked(*(column[:, :tighter].contiguous() for column in (boxes, scores, anchors, valid)))
    kept = nms(part.boxes, part.scores, None, part.valid, iou=iou, top=min(keep, tighter))
    proposals = _best_of_levels(part, kept, levels=levels, keep=keep)
    left = torch.cat([part.anchors[row][kept.index[row][kept.valid[row]]] for row in range(levels)])
    return given, proposals.anchors[0][proposals.valid[0]].tolist(), left.tolist()


RUN_RANKED = """(cases) => cases.map(({ranked, settings, anchors}) => {
  const own = {...ranked, boxes: Float32Array.from(ranked.boxes), scores: Float32Array.from(ranked.scores)};
  const {kept, survivors} = selectProposals(own, settings);
  return {kept: kept.map((i) => anchors[i]), survivors: survivors.map((i) => anchors[i])};
})"""


@pytest.mark.slow
def test_selection_of_proposals_equals_the_library(tail: Any) -> None:
    """Top-k, NMS of each level, top-n: the same anchors in the same order."""
    cases = [ranked_case(seed) for seed in range(CASES)]
    for (given, kept, left), result in zip(cases, tail.evaluate(RUN_RANKED, [case[0] for case in cases]), strict=True):
        assert result["survivors"] == left, given["settings"]
        assert result["kept"] == kept, given["settings"]
