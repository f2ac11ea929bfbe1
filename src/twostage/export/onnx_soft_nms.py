"""Soft-NMS as a Loop of ONNX, written in onnxscript: a function whose body is a graph (Bodla et al. 2017, figure 2)."""
# Its names and types are those of the graph, which type checkers and linters of Python do not follow.
# mypy: ignore-errors
# ruff: noqa: B007

from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript import opset18 as op


@script(default_opset=op)
def decayed(
    boxes: FLOAT["n", "m", 4],
    scores: FLOAT["n", "m"],
    groups: INT64["n", "m"],
    top: INT64,
    floor: FLOAT,
    iou: FLOAT,
    linear: BOOL,
    sigma: FLOAT,
) -> FLOAT["n", "m"]:
    """The decayed scores of the boxes that are taken, -inf of the others; see `ops.soft_nms`.

    In each of `top` rounds the best box of every image is taken, until no score reaches `floor`.
    """
    zero = op.Constant(value_float=0.0)
    one = op.Constant(value_float=1.0)
    none = op.Constant(value_float=float("-inf"))
    third = op.Constant(value_ints=[2])
    x1, y1, x2, y2 = op.Split(boxes, axis=2, num_outputs=4)
    area = op.Mul(op.Max(op.Sub(x2, x1), zero), op.Max(op.Sub(y2, y1), zero))
    waiting = scores
    taken = op.Where(op.Equal(scores, scores), none, none)
    for turn in range(top):
        best = op.ArgMax(waiting, axis=1, keepdims=1, select_last_index=0)
        score = op.GatherElements(waiting, best, axis=1)
        # An image that is done takes nothing more, while others go on.
        before = op.GatherElements(taken, best, axis=1)
        taken = op.ScatterElements(taken, best, op.Where(op.GreaterOrEqual(score, floor), score, before), axis=1)
        waiting = op.ScatterElements(waiting, best, op.Where(op.Equal(score, score), none, none), axis=1)
        place = op.Unsqueeze(best, third)
        box = op.GatherElements(boxes, op.Expand(place, op.Constant(value_ints=[1, 1, 4])), axis=1)
        a1, b1, a2, b2 = op.Split(box, axis=2, num_outputs=4)
        width = op.Max(op.Sub(op.Min(x2, a2), op.Max(x1, a1)), zero)
        height = op.Max(op.Sub(op.Min(y2, b2), op.Max(y1, b1)), zero)
        both = op.Mul(width, height)
        own = op.GatherElements(area, place, axis=1)
        union = op.Max(op.Sub(op.Add(area, own), both), op.Constant(value_float=1e-30))
        overlap = op.Squeeze(op.Div(both, union), third)
        gaussian = op.Exp(op.Div(op.Mul(overlap, overlap), op.Neg(sigma)))
        straight = op.Where(op.Greater(overlap, iou), op.Sub(one, overlap), one)
        same = op.Equal(groups, op.GatherElements(groups, best, axis=1))
        # Where a box is taken or dropped: -inf times a decay of 0 would be NaN.
        rival = op.And(same, op.Greater(waiting, none))
        waiting = op.Where(rival, op.Mul(waiting, op.Where(linear, straight, gaussian)), waiting)
        done = op.Less(op.ReduceMax(waiting, keepdims=0), floor)
        if done:
            break
    return taken
