"""What the page has of anchors: where they lie, how they are scored, and those that are ranked.

Letters: A anchors of all levels, C ranked anchors of all levels, k anchors of a position.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twostage.inspection.page.columns import column
from twostage.inspection.trace import Trace
from twostage.models.one_stage import OneStage, OneStageStages
from twostage.models.proposals.anchors import Anchors
from twostage.models.targets.matching import IGNORE

Json = dict[str, Any]

_LARGE = 100.0  # a logit of infinity
_CODES = 254  # steps of a logit in one byte; 0 is an anchor that may not propose


def anchors_data(trace: Trace) -> Json | None:
    """The anchors, on the pixels of the batch; None where proposals come from elsewhere.

    {"levels": the grid of each level (`level_grids`), "logits", "low", "high": a byte for each anchor from 1 to 255
    between these logits, 0 where it may not propose, "ranked": see `_ranked`, None of one stage, "learned": `_learned`}
    """
    predictions = trace.stages.anchors
    if predictions is None:
        return None
    logits, inside = torch.cat(predictions.logits, dim=1)[0], torch.cat(predictions.inside, dim=1)[0]
    logits = logits.float().nan_to_num(0.0, _LARGE, -_LARGE)
    if isinstance(trace.stages, OneStageStages):  # an anchor counts as its best class
        logits = logits.unflatten(0, (-1, len(trace.names))).amax(dim=1)
    low, high = (float(x) for x in logits.aminmax())
    codes = 1 + (logits - low) * (_CODES / max(high - low, 1e-6))
    return {
        "levels": level_grids(layer_of(trace), predictions.anchors),
        "logits": column(codes.round().where(inside, 0), "u1"),
        "low": low,
        "high": high,
        "ranked": _ranked(trace),
        "learned": _learned(trace),
    }


def layer_of(trace: Trace) -> Anchors:
    """The layer that makes the anchors."""
    model = trace.model
    if isinstance(trace.stages, OneStageStages):
        return cast(OneStage, model).head.anchors
    assert model.rpn is not None
    return model.rpn.anchors


def level_grids(layer: Anchors, anchors: Sequence[Float[Tensor, "_ 4"]]) -> list[Json]:
    """Of each level the rows and columns of its positions, the step between them (y, x), and the anchors of the first.

    Read from the anchors themselves, because an exported file gives no maps.
    """
    levels = []
    for stride, each, boxes in zip(layer.strides, layer.per_position, anchors, strict=True):
        corner = boxes[::each, :2]
        columns = int((corner[:, 1] == corner[0, 1]).sum())
        rows = len(corner) // columns
        step_x = round(float(corner[1, 0] - corner[0, 0])) if columns > 1 else stride
        step_y = round(float(corner[columns, 1] - corner[0, 1])) if rows > 1 else stride
        levels.append(
            {
                "name": level_name(stride),
                "stride": stride,
                "rows": rows,
                "columns": columns,
                "step": [step_y, step_x],
                "cell": boxes[:each].tolist(),
            }
        )
    return levels


def level_name(stride: int) -> str:
    """P2 for stride 4, as in the FPN paper."""
    return f"P{max(0, stride.bit_length() - 1)}"


def _ranked(trace: Trace) -> Json | None:
    """The best anchors of each level, best first, level after level: what enters the RPN's NMS.

    {"counts": of each level, "anchors", "scores": logits, "boxes": moved and clipped, "valid": large and good enough}
    """
    rpn, stages = trace.model.rpn, trace.stages
    if rpn is None or stages.anchors is None or isinstance(stages, OneStageStages):
        return None
    ranked = rpn.ranked(stages.anchors, trace.batch.sizes, stages.proposals.originals, rpn.config.top_test)
    there = ranked.scores > -torch.inf
    return {
        "counts": there.sum(dim=1).tolist(),
        "anchors": column(ranked.anchors[there], "i4"),
        "scores": column(ranked.scores[there], "f4"),
        "boxes": column(ranked.boxes[there], "f4"),
        "valid": column(ranked.valid[there], "u1"),
    }


def _learned(trace: Trace) -> Json | None:
    """What each anchor would learn, where the objects are given: a byte, 0 background, 1 ignored, 2 an object, and 4
    more where it is in the sample."""
    if trace.targets is None or trace.learning.anchors is None:
        return None
    learned = trace.learning.anchors
    matches = learned.matches.numpy()
    codes = np.where(matches >= 0, 2, np.where(matches == IGNORE, 1, 0)) + 4 * learned.sampled.numpy()
    return column(codes, "u1")
