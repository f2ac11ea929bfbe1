"""RoIAlign on several feature levels in one call (Mask R-CNN, section 3), differentiable in features and boxes.

Letters: n images, p boxes of each, padded, c channels, sy x sx bins. The operator is `twostage::roi_align`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from twostage.ops.accelerator import roi_align as _accelerator
from twostage.ops.cpu import roi_align as _cpu

Sides = Sequence[int | torch.SymInt]


def roi_align(
    features: Sequence[Float[Tensor, "n c _ _"]],
    boxes: Float[Tensor, "n p 4"],
    levels: Int[Tensor, "n p"],
    *,
    scales: Sequence[float],
    output_size: int | tuple[int, int] = 7,
    sampling_ratio: int = 2,
    aligned: bool = False,
    max_samples: int | None = None,
) -> Float[Tensor, "n p c sy sx"]:
    """The mean of bilinear samples in each bin of each box, read from the level of the box; torchvision's numbers.

    `scales` are the levels' cells per pixel (1/4, 1/8, ...). `sampling_ratio` is the number of samples along each axis
    of a bin; 0 adapts it to the box, `ceil(size / bins)`, at most `max_samples`, which devices other than the CPU need
    (ValueError). `aligned` shifts boxes by half a cell and allows boxes smaller than a cell, as in detectron2.

    Coordinates are float32; the result has the dtype of the features, which all levels share. In memory it is
    channels-last, [n, p, sy, sx, c]: a permuted view. Channels-last features are read without a copy.
    """
    size = [output_size, output_size] if isinstance(output_size, int) else list(output_size)
    arguments = (boxes, levels, list(scales), size, sampling_ratio, aligned, max_samples)
    out: Tensor = torch.ops.twostage.roi_align(list(features), *arguments)
    return out.permute(0, 1, 4, 2, 3)


def _fake(features: list[Tensor], boxes: Tensor, levels: Tensor, scales: Any, size: Sides, *_: Any) -> Tensor:
    return features[0].new_empty(*levels.shape, *size, features[0].shape[1])


def _fake_features_gradient(gradient: Tensor, shapes: Sides, boxes: Tensor, *_: Any) -> list[Tensor]:
    n, c = len(boxes), gradient.shape[-1]
    sizes = zip(shapes[::2], shapes[1::2], strict=True)
    return [gradient.new_empty(n, height, width, c).permute(0, 3, 1, 2) for height, width in sizes]


def _fake_boxes_gradient(gradient: Tensor, features: list[Tensor], boxes: Tensor, *_: Any) -> Tensor:
    return boxes.new_empty(boxes.shape, dtype=torch.promote_types(boxes.dtype, torch.float32))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, levels, *ctx.settings = inputs
    ctx.shapes = [side for feature in features for side in feature.shape[2:]]
    ctx.needs_boxes = boxes.requires_grad
    ctx.needs_features = any(feature.requires_grad for feature in features)
    # The gradient in the features needs only their shapes; only the gradient in the boxes needs the maps.
    ctx.save_for_backward(boxes, levels, *(features if ctx.needs_boxes else []))


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    boxes, levels, *features = ctx.saved_tensors
    features_gradient: Any = [None] * (len(ctx.shapes) // 2)
    boxes_gradient = None
    if ctx.needs_features:
        features_gradient = torch.ops.twostage.roi_align_features_gradient(
            gradient, ctx.shapes, boxes, levels, *ctx.settings
        )
    if ctx.needs_boxes:
        boxes_gradient = torch.ops.twostage.roi_align_boxes_gradient(gradient, features, boxes, levels, *ctx.settings)
        boxes_gradient = boxes_gradient.to(boxes.dtype)
    return features_gradient, boxes_gradient, None, None, None, None, None, None


_ARGUMENTS = "Tensor boxes, Tensor levels, float[] scales, SymInt[] size, int ratio, bool aligned, int? max_samples"

torch.library.define("twostage::roi_align", f"(Tensor[] features, {_ARGUMENTS}) -> Tensor")
torch.library.define(
    "twostage::roi_align_features_gradient", f"(Tensor gradient, SymInt[] shapes, {_ARGUMENTS}) -> Tensor[]"
)
torch.library.define(
    "twostage::roi_align_boxes_gradient", f"(Tensor gradient, Tensor[] features, {_ARGUMENTS}) -> Tensor"
)
for _kernels, _device in ((_cpu, "cpu"), (_accelerator, "default")):
    torch.library.impl("twostage::roi_align", _device, _kernels.forward)
    torch.library.impl("twostage::roi_align_features_gradient", _device, _kernels.features_gradient)
    torch.library.impl("twostage::roi_align_boxes_gradient", _device, _kernels.boxes_gradient)

torch.library.register_fake("twostage::roi_align", _fake)
torch.library.register_fake("twostage::roi_align_features_gradient", _fake_features_gradient)
torch.library.register_fake("twostage::roi_align_boxes_gradient", _fake_boxes_gradient)
torch.library.register_autograd("twostage::roi_align", _backward, setup_context=_setup_context)
