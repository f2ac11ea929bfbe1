"""Our operators as ONNX graphs, for `torch.onnx.export(dynamo=True, custom_translation_table=TRANSLATIONS)`.

Every attribute is written out: a runtime's default need not be that of the standard (OpenVINO issue 37826).

Letters: n images, m boxes of each, p regions of each, c channels, sy x sx bins.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import FLOAT, INT64, opset18

from twostage.export.onnx_soft_nms import decayed
from twostage.ops import best as _registers_best  # noqa: F401
from twostage.ops import nms as _registers_nms  # noqa: F401
from twostage.ops import roi_align as _registers_roi_align  # noqa: F401
from twostage.ops import roi_pool as _registers_roi_pool  # noqa: F401
from twostage.ops import soft_nms as _registers_soft_nms  # noqa: F401
from twostage.ops.cpu.nms import exact_threshold

op: Any = opset18  # its type variables are not those of the arguments of a translation

_NONE = -np.inf
_LOWEST = float(np.finfo(np.float32).min)


def _int(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _float(value: float) -> Any:
    return op.Constant(value_float=value)


def _boolean(value: bool) -> onnx.TensorProto:
    return onnx.helper.make_tensor("value", onnx.TensorProto.BOOL, [], [value])


def _competing(boxes: Any, scores: Any, groups: Any, valid: Any) -> tuple[Any, Any, Any]:
    """The columns up to the last valid one, at least one of them, with scores of -inf for those that are not valid."""
    scores = op.Where(valid, scores, _float(_NONE))
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    columns = op.Range(one, op.Add(op.Squeeze(op.Shape(valid, start=1, end=2)), one), one)
    last = op.ReduceMax(op.Where(valid, columns, zero), keepdims=0)
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
        boxes,
        by_group,
        _int(top),
        _float(exact_threshold(iou, np.dtype(np.float32))),
        _float(_LOWEST),
        center_point_box=0,
    )
    places = op.Gather(kept, _int(0, 2), axis=1)
    ones = op.Expand(_float(1.0), op.Shape(op.Slice(places, _int(0), _int(1), _int(1)), start=0, end=1))
    survives = op.ScatterND(
        op.Mul(op.Cast(op.Equal(scores, scores), to=FLOAT.dtype), _float(0.0)), places, ones, reduction="none"
    )
    index, _, found = _best(op.Where(op.Greater(survives, _float(0.5)), scores, _float(_NONE)), top)
    return index, found, op.Expand(op.Constant(value=_boolean(False)), op.Shape(scores, start=0, end=1))


def soft_nms(
    boxes: Any,
    scores: Any,
    groups: Any,
    valid: Any,
    gaussian: bool,
    top: int,
    iou: float,
    sigma: float,
    min_score: float,
) -> tuple[Any, Any, Any]:
    """`twostage::soft_nms` by a Loop that ends when no score is left."""
    boxes, scores, groups = _competing(boxes, scores, groups, valid)
    if groups is None:
        groups = op.Expand(op.Constant(value_int=0), op.Shape(scores))
    linear = op.Constant(value=onnx.helper.make_tensor("linear", onnx.TensorProto.BOOL, [], [not gaussian]))
    taken = decayed(
        boxes, scores, groups, op.Constant(value_int=top), _float(min_score), _float(iou), linear, _float(sigma)
    )
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


def best(scores: Any, among: Any, top: Any, fits: bool) -> tuple[Any, Any]:
    """`twostage::best`; where all fit, by their places alone. `top` is a number, or one that the graph computes."""
    if not fits:
        index, _, valid = _best(op.Where(among, scores, _float(_NONE)), top)
        return index, valid
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    number = op.CumSum(op.Cast(among, to=INT64.dtype), one)
    places = op.Transpose(op.NonZero(among), perm=[1, 0])  # of each that is among them: row, place
    row, place = op.Split(places, axis=1, num_outputs=2)
    rank = op.Unsqueeze(op.Sub(op.GatherND(number, places), one), _int(1))
    columns = _int(top) if isinstance(top, int) else op.Reshape(top, _int(1))
    nowhere = op.Expand(zero, op.Concat(op.Shape(scores, start=0, end=1), columns, axis=0))
    index = op.ScatterND(nowhere, op.Concat(row, rank, axis=1), op.Squeeze(place, _int(1)), reduction="none")
    count = op.ReduceSum(op.Cast(among, to=INT64.dtype), _int(1), keepdims=1)
    return index, op.Less(op.Range(zero, op.Squeeze(columns), one), count)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.twostage.nms.default: nms,
    torch.ops.twostage.soft_nms.default: soft_nms,
    torch.ops.twostage.roi_align.default: roi_align,
    torch.ops.twostage.best.default: best,
    torch.ops.twostage.roi_pool.default: roi_pool,
}
