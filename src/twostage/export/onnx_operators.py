"""Our operators as ONNX graphs, for `torch.onnx.export(dynamo=True, custom_translation_table=TRANSLATIONS)`.

Every attribute is written out: a runtime's default need not be that of the standard (OpenVINO issue 37826).

Letters: n images, m boxes of each, p regions of each, c channels, sy x sx bins.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript import opset18 as op

import twostage.ops.roi_pool  # noqa: F401  registers
from twostage.ops.cpu.nms import exact_threshold

_NONE = -np.inf
_LOWEST = float(np.finfo(np.float32).min)


def _int(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _float(value: float) -> Any:
    return op.Constant(value_float=value)


def _competing(boxes: Any, scores: Any, groups: Any, valid: Any) -> tuple[Any, Any, Any]:
    """The columns up to the last valid one, at least one of them, with scores of -inf for those that are not valid."""
    scores = op.Where(valid, scores, _float(_NONE))
    columns = op.CumSum(op.Cast(op.Not(op.And(valid, op.Not(valid))), to=INT64.dtype), _int(1))
    last = op.ReduceMax(op.Where(valid, columns, _int(0)), keepdims=0)
    end = op.Reshape(op.Max(last, _int(1)), _int(1))
    start, axis = _int(0), _int(1)
    boxes, scores = (op.Slice(each, start, end, axis) for each in (boxes, scores))
    return boxes, scores, None if groups is None else op.Slice(groups, start, end, axis)


def _best(scores: Any, top: int) -> tuple[Any, Any, Any]:
    """Index, score and validity of the `top` best above -inf, of equal ones the first; where there are fewer, 0."""
    padded = op.Pad(scores, _int(0, 0, 0, top), _float(_NONE), mode="constant")
    best, index = op.TopK(padded, _int(top), axis=1, largest=1, sorted=1)
    valid = op.Greater(best, _float(_LOWEST))
    return op.Where(valid, index, _int(0)), best, valid


def nms(boxes: Any, scores: Any, groups: Any, valid: Any, iou: float, top: int) -> tuple[Any, Any, Any]:
    """`twostage::nms` by NonMaxSuppression, with a class axis for the groups."""
    boxes, scores, groups = _competing(boxes, scores, groups, valid)
    by_group = op.Unsqueeze(scores, _int(1))
    if groups is not None:
        last = op.ReduceMax(groups, keepdims=0)
        every = op.Range(op.Constant(value_int=0), op.Add(last, op.Constant(value_int=1)), op.Constant(value_int=1))
        own = op.Equal(op.Unsqueeze(groups, _int(1)), op.Reshape(every, _int(1, -1, 1)))
        by_group = op.Where(own, by_group, _float(_NONE))
    kept = op.NonMaxSuppression(
        boxes, by_group, _int(top), _float(exact_threshold(iou, np.dtype(np.float32))), _float(_LOWEST),
        center_point_box=0,
    )
    places = op.Gather(kept, _int(0, 2), axis=1)
    ones = op.Expand(_float(1.0), op.Shape(op.Slice(places, _int(0), _int(1), _int(1)), start=0, end=1))
    survives = op.ScatterND(op.Mul(op.Cast(op.Equal(scores, scores), to=FLOAT.dtype), _float(0.0)), places, ones, reduction="none")
    index, _, found = _best(op.Where(op.Greater(survives, _float(0.5)), scores, _float(_NONE)), top)
    return index, found, op.Less(op.ReduceMax(index, _int(1), keepdims=0), _int(0))



@script(default_opset=op)
def _decayed(
    boxes: FLOAT["n", "m", 4],
    scores: FLOAT["n", "m"],
    groups: INT64["n", "m"],
    top: INT64,
    floor: FLOAT,
    iou: FLOAT,
    linear: BOOL,
    sigma: FLOAT,
) -> FLOAT["n", "m"]:
    """The decayed scores of the boxes that are taken, -inf of the others."""
    zero = op.Constant(value_float=0.0)
    one = op.Constant(value_float=1.0)
    none = op.Sub(zero, op.Div(one, zero))
    index = op.Constant(value_int=0)
    x1, y1, x2, y2 = op.Split(boxes, axis=2, num_outputs=4)
    area = op.Mul(op.Max(op.Sub(x2, x1), zero), op.Max(op.Sub(y2, y1), zero))
    waiting = scores
    taken = op.Add(op.Mul(op.Cast(op.Equal(scores, scores), to=1), zero), none)
    going = op.GreaterOrEqual(op.ReduceMax(waiting, keepdims=0), floor)
    for turn in range(top):
        best = op.ArgMax(waiting, axis=1, keepdims=1, select_last_index=0)
        score = op.GatherElements(waiting, best, axis=1)
        taken = op.ScatterElements(taken, best, op.Where(op.GreaterOrEqual(score, floor), score, none), axis=1)
        waiting = op.ScatterElements(waiting, best, op.Add(op.Mul(op.Cast(op.Equal(score, score), to=1), zero), none), axis=1)
        place = op.Unsqueeze(best, op.Constant(value_ints=[2]))
        box = op.GatherElements(boxes, op.Expand(place, op.Constant(value_ints=[1, 1, 4])), axis=1)
        a1, b1, a2, b2 = op.Split(box, axis=2, num_outputs=4)
        width = op.Max(op.Sub(op.Min(x2, a2), op.Max(x1, a1)), zero)
        height = op.Max(op.Sub(op.Min(y2, b2), op.Max(y1, b1)), zero)
        both = op.Mul(width, height)
        own = op.GatherElements(area, place, axis=1)
        union = op.Max(op.Sub(op.Add(area, own), both), op.Constant(value_float=1e-30))
        overlap = op.Squeeze(op.Div(both, union), op.Constant(value_ints=[2]))
        gaussian = op.Exp(op.Div(op.Mul(overlap, overlap), op.Neg(sigma)))
        straight = op.Where(op.Greater(overlap, iou), op.Sub(one, overlap), one)
        decay = op.Where(linear, straight, gaussian)
        same = op.And(op.Equal(groups, op.GatherElements(groups, best, axis=1)), op.Greater(waiting, none))
        waiting = op.Where(same, op.Mul(waiting, decay), waiting)
        going = op.GreaterOrEqual(op.ReduceMax(waiting, keepdims=0), floor)
        stop = op.Not(going)
        if stop:
            break
    return taken


def soft_nms(
    boxes: Any, scores: Any, groups: Any, valid: Any, gaussian: bool, top: int, iou: float, sigma: float, min_score: float
) -> tuple[Any, Any, Any]:
    """`twostage::soft_nms` by a Loop that ends when no score is left."""
    boxes, scores, groups = _competing(boxes, scores, groups, valid)
    if groups is None:
        groups = op.Cast(op.Mul(scores, _float(0.0)), to=INT64.dtype)
    linear = op.Constant(value=onnx.helper.make_tensor("linear", onnx.TensorProto.BOOL, [], [not gaussian]))
    taken = _decayed(boxes, scores, groups, op.Constant(value_int=top), _float(min_score), _float(iou), linear, _float(sigma))
    index, best, kept = _best(taken, top)
    return index, op.Where(kept, best, _float(0.0)), kept


def roi_align(
    features: Sequence[Any],
    boxes: Any,
    levels: Any,
    scales: Sequence[float],
    size: Sequence[int],
    ratio: int,
    aligned: bool,
    max_samples: int | None,
) -> Any:
    """`twostage::roi_align` by one RoiAlign per level, whose results are put back in the order of the regions."""
    images = _image_of_region(boxes)
    regions, level = op.Reshape(boxes, _int(-1, 4)), op.Reshape(levels, _int(-1))
    pooled, places = [], []
    for number, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        place = op.Squeeze(op.NonZero(op.Equal(level, op.Constant(value_int=number))), _int(0))
        places.append(place)
        pooled.append(
            op.RoiAlign(
                feature,
                op.Gather(regions, place, axis=0),
                op.Gather(images, place, axis=0),
                coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
                mode="avg",
                output_height=size[0],
                output_width=size[1],
                sampling_ratio=ratio,
                spatial_scale=scale,
            )
        )
    if len(features) == 1:
        out = pooled[0]
    else:
        place = op.Concat(*places, axis=0)
        number = op.Range(op.Constant(value_int=0), op.Size(place), op.Constant(value_int=1))
        order = op.ScatterElements(number, place, number, axis=0)
        out = op.Gather(op.Concat(*pooled, axis=0), order, axis=0)
    whole = op.Concat(op.Shape(levels), _int(-1, *size), axis=0)
    return op.Transpose(op.Reshape(out, whole), perm=[0, 1, 3, 4, 2])


def roi_pool(features: Any, boxes: Any, scale: float, size: Sequence[int], max_cells: Sequence[int] | None) -> Any:
    """`twostage::roi_pool` by MaxRoiPool."""
    images = op.Cast(_image_of_region(boxes), to=FLOAT.dtype)
    regions = op.Concat(op.Unsqueeze(images, _int(1)), op.Reshape(boxes, _int(-1, 4)), axis=1)
    out = op.MaxRoiPool(features, regions, pooled_shape=list(size), spatial_scale=scale)
    return op.Reshape(out, op.Concat(op.Shape(boxes, start=0, end=2), _int(-1, *size), axis=0))


def _image_of_region(boxes: Any) -> Any:
    """The number of the image of each region."""
    image = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(boxes, start=0, end=1)), op.Constant(value_int=1))
    return op.Reshape(op.Expand(op.Unsqueeze(image, _int(1)), op.Shape(boxes, start=0, end=2)), _int(-1))


def sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """`aten::sort` by TopK, of which the standard says that of equal values the lower index comes first."""
    length = op.Shape(x, start=dim, end=dim + 1 if dim != -1 else None)
    return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.twostage.nms.default: nms,
    torch.ops.twostage.soft_nms.default: soft_nms,
    torch.ops.twostage.roi_align.default: roi_align,
    torch.ops.twostage.roi_pool.default: roi_pool,
    torch.ops.aten.sort.stable: sort,
}
