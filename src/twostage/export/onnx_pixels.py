"""Resizing inside an ONNX model: uint8 pixels of images in, boxes on those pixels out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from twostage.errors import UsageError
from twostage.models.image import ImageConfig

Op = Callable[..., ir.Value]
_DOUBLE, _FLOAT, _INT64 = ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.INT64


def take_pixels(model: ir.Model, config: ImageConfig) -> None:
    """Put the input `pixels` [n, h, w, 3] in the place of `images` and `sizes`: n images of one size.

    Raises UsageError for a rule of resizing that ONNX has no operator for.
    """
    if config.resize_by != "torch":
        raise UsageError(
            f"--pixels: this detector resizes by {config.resize_by}'s rule, which ONNX has no operator for: leave "
            "--pixels out, then predict.py resizes."
        )
    graph = model.graph
    if [value.name for value in graph.inputs] != ["images", "sizes"]:
        raise UsageError("--pixels: this detector takes more than the resized images: leave --pixels out.")
    shape = ir.Shape(["images", "height", "width", 3])
    pixels = ir.Value(name="pixels", shape=shape, type=ir.TensorType(ir.DataType.UINT8))
    tape = Tape()
    op = partial(_add, tape)
    sides = op("Shape", pixels)
    old = op("Slice", sides, _ints(op, 1), _ints(op, 3))
    new = _new_shape(op, old, config)
    images = op(
        "Div", op("Cast", op("Transpose", pixels, perm=[0, 3, 1, 2]), to=_FLOAT), _constant(op, np.float32(255))
    )
    count = op("Slice", sides, _ints(op, 0), _ints(op, 1))
    resized = op(
        "Resize",
        images,
        None,
        None,
        op("Concat", count, _ints(op, 3), new, axis=0),
        mode="linear",
        coordinate_transformation_mode="half_pixel",
        antialias=int(config.antialias),
    )
    divisor = _ints(op, config.divisor)
    over = op("Mod", op("Neg", new), divisor)
    canvas = op("Pad", resized, op("Concat", _ints(op, 0, 0, 0, 0, 0, 0), over, axis=0), _constant(op, np.float32(0)))
    sizes = op("Expand", op("Unsqueeze", new, _ints(op, 0)), op("Concat", count, _ints(op, 2), axis=0))
    for value, other in zip(list(graph.inputs), (canvas, sizes), strict=True):
        value.replace_all_uses_with(other)
    graph.insert_before(graph[0], tape.nodes)
    graph.inputs[:] = [pixels]
    _on_pixels(graph, old, new)


def _new_shape(op: Op, old: ir.Value, config: ImageConfig) -> ir.Value:
    """Height and width after resizing; `data.resize_geometry` in the same floats of 64 bits."""
    if config.resize == "fixed":
        return _ints(op, config.size, config.size)
    side = op("Cast", old, to=_DOUBLE)
    shortest, longest = (op(reduce, side, keepdims=1) for reduce in ("ReduceMin", "ReduceMax"))
    by_short = op("Div", _constant(op, np.array([config.size], dtype=np.float64)), shortest)
    by_long = op("Div", _constant(op, np.array([config.max_size], dtype=np.float64)), longest)
    half = 0.5 if config.rounding == "nearest" else 0.0
    places = op("Add", op("Mul", side, op("Min", by_short, by_long)), _constant(op, np.array([half], dtype=np.float64)))
    return op("Max", op("Cast", op("Floor", places), to=_INT64), _ints(op, 1))


def _on_pixels(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """The boxes on the pixels of the images before they were resized."""
    tape = Tape()
    op = partial(_add, tape)
    ratio = op("Div", op("Cast", old, to=_DOUBLE), op("Cast", new, to=_DOUBLE))
    down, across = (op("Slice", op("Cast", ratio, to=_FLOAT), _ints(op, k), _ints(op, k + 1)) for k in (0, 1))
    height, width = (op("Slice", op("Cast", old, to=_FLOAT), _ints(op, k), _ints(op, k + 1)) for k in (0, 1))
    place = next(k for k, value in enumerate(graph.outputs) if value.name == "boxes")
    boxes = graph.outputs[place]
    boxes.name = "resized_boxes"
    scaled = op("Mul", boxes, op("Concat", across, down, across, down, axis=0))
    inside = op("Min", scaled, op("Concat", width, height, width, height, axis=0))
    inside.name, inside.shape, inside.dtype = "boxes", boxes.shape, _FLOAT
    graph.extend(tape.nodes)
    graph.outputs[place] = inside


def _add(tape: Tape, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
    """The output of a new node."""
    return tape.op(kind, inputs, attributes)


def _constant(op: Op, value: Any) -> ir.Value:
    return op("Constant", value=ir.tensor(np.asarray(value)))


def _ints(op: Op, *values: int) -> ir.Value:
    return _constant(op, np.array(values, dtype=np.int64))
