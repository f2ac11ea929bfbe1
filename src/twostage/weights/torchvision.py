"""torchvision's Faster and Mask R-CNN weights under our names.

What differs: names of modules; fc6 reads a region channel first there, channel last here; the background rows of the
box regressor and of the masks, which nothing reads, are dropped; a transposed convolution is four matrices here; COCO's
91 outputs with holes become 80 when 80 names are given.
"""

import re
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.errors import DataError

COCO_HOLES = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Category ids below 91 that COCO's detection task never used."""

RENAMES = (
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.(weight|bias)$", r"backbone.laterals.\1.0.\2"),  # torchvision < 0.14
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.(weight|bias)$", r"backbone.outputs.\1.0.\2"),
    (r"^backbone\.fpn\.inner_blocks\.", "backbone.laterals."),
    (r"^backbone\.fpn\.layer_blocks\.", "backbone.outputs."),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.convs.0.\1"),  # torchvision < 0.13
    (r"^rpn\.head\.conv\.(\d+)\.0\.", r"rpn.convs.\1."),
    (r"^rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "rpn.deltas."),
    *((rf"^roi_heads\.mask_head\.mask_fcn{k + 1}\.", f"head.mask.convs.{k}.0.") for k in range(4)),  # < 0.13
    (r"^roi_heads\.mask_head\.(\d)\.([01])\.", r"head.mask.convs.\1.\2."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "head.mask.up."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "head.mask.classes."),
    (r"^roi_heads\.box_head\.fc([67])\.", r"head.body.fc\1."),
    (r"^roi_heads\.box_head\.(\d)\.([01])\.", r"head.body.convs.\1.\2."),
    (r"^roi_heads\.box_head\.5\.", "head.body.fc."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "head.classes."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "head.deltas."),
    (r"^backbone\.body\.(\d+)\.", r"backbone.body.features.\1."),  # MobileNet
)


def from_torchvision(state: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """The state dict of a torchvision Faster or Mask R-CNN as ours takes it.

    Raises DataError when the file predicts another number of classes.
    """
    renamed = {_renamed(name): tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    if "head.classes.weight" not in renamed:
        raise DataError("These are not a torchvision Faster R-CNN's weights: roi_heads.box_predictor is missing.")
    keep = _classes(len(renamed["head.classes.weight"]), num_classes)
    for name, convert in _CONVERSIONS.items():
        if name in renamed:
            renamed[name] = convert(renamed[name], keep)
    if not any(name.startswith("head.mask.") for name in renamed):
        return renamed
    # Beside a mask head the box head is one of two.
    return {re.sub(r"^head\.(?!mask\.)", "head.box.", name): tensor for name, tensor in renamed.items()}


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    return name


def _classes(outputs: int, num_classes: int) -> Tensor:
    """Which of the K + 1 rows stay, background first."""
    if outputs == num_classes + 1:
        return torch.arange(outputs)
    if (outputs, num_classes) == (91, 80):
        return torch.tensor([row for row in range(91) if row not in COCO_HOLES])
    raise DataError(
        f"The weights have {outputs - 1} classes (and background), but {num_classes} names are given. "
        f"Give {outputs - 1} names."
    )


def _rows(weight: Tensor, keep: Tensor) -> Tensor:
    return weight[keep]


def _box_rows(weight: Tensor, keep: Tensor) -> Tensor:
    return weight.unflatten(0, (-1, 4))[keep[1:]].flatten(0, 1)


def _object_rows(weight: Tensor, keep: Tensor) -> Tensor:
    """The rows of a layer that has a mask of background as well; a 1 x 1 convolution is a matrix."""
    return weight[keep[1:]].flatten(1) if weight.ndim > 1 else weight[keep[1:]]


def _transposed(weight: Float[Tensor, "c d 2 2"], keep: Tensor) -> Float[Tensor, "4 d c"]:
    return weight.permute(2, 3, 1, 0).flatten(0, 1)


def channel_last(weight: Float[Tensor, "d csS"], channels: int) -> Float[Tensor, "d sSc"]:
    """fc6's columns turned from (channel, row, column) to (row, column, channel)."""
    side = round((weight.shape[1] / channels) ** 0.5)
    return weight.unflatten(1, (channels, side, side)).permute(0, 2, 3, 1).flatten(1)


def _fc6(weight: Tensor, keep: Tensor) -> Tensor:
    return channel_last(weight, 256)


_CONVERSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "head.classes.weight": _rows,
    "head.classes.bias": _rows,
    "head.deltas.weight": _box_rows,
    "head.deltas.bias": _box_rows,
    "head.body.fc6.weight": _fc6,
    "head.body.fc.weight": _fc6,
    "head.mask.up.weight": _transposed,
    "head.mask.classes.weight": _object_rows,
    "head.mask.classes.bias": _object_rows,
}
