"""torchvision's Faster and Mask R-CNN and RetinaNet weights under our names.

What differs: names of modules; fc6 reads a region channel first there, channel last here; the background rows of the
box regressor, of the masks and of RetinaNet, which nothing reads, are dropped; a transposed convolution is four
matrices here; COCO's 91 outputs with holes become 80. RetinaNet's anchor sizes are whole numbers.
"""

import re
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from twostage.errors import DataError
from twostage.models.config import TwoStageConfig
from twostage.models.configure import configure
from twostage.models.zoo import ZOO, named
from twostage.weights.fit import channel_last
from twostage.weights.importers.architecture import read_architecture, resnet_of
from twostage.weights.importers.imported import Imported, change, refuse

ANCHORS = 9  # at each position of RetinaNet's maps
_OTHERS = {r"^roi_heads\.keypoint_": "Keypoint R-CNN", r"bbox_ctrness": "FCOS"}
COCO_OUTPUTS = 91  # with background and the holes
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
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "backbone.extra.sixth.0."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "backbone.extra.seventh.0."),
    *((rf"^head\.classification_head\.conv\.{2 * k}\.(weight|bias)$", rf"head.class_tower.{k}.0.\1") for k in range(4)),
    *((rf"^head\.regression_head\.conv\.{2 * k}\.(weight|bias)$", rf"head.box_tower.{k}.0.\1") for k in range(4)),
    (r"^head\.classification_head\.conv\.", "head.class_tower."),
    (r"^head\.regression_head\.conv\.", "head.box_tower."),
    (r"^head\.classification_head\.cls_logits\.", "head.classes."),
    (r"^head\.regression_head\.bbox_reg\.", "head.deltas."),
)


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of a detector of torchvision's."""
    first = ("backbone.body.conv1.weight", "backbone.body.0.0.weight")
    return any(name in state for name in first) and any(name.startswith(("roi_heads.", "head.")) for name in state)


def import_torchvision(state: Mapping[str, Tensor]) -> Imported:
    """The detector of a state dict. Raises DataError for one of another kind.

    A MobileNet of 320 pixels cannot be told from one of 800: it is taken for the latter.
    """
    refuse(state, "torchvision", _OTHERS)
    if "head.classification_head.cls_logits.weight" in state:
        return _retinanet(state)
    outputs = len(state.get("roi_heads.box_predictor.cls_score.bias", ()))
    num_classes = 80 if outputs == COCO_OUTPUTS else outputs - 1
    tensors = from_torchvision(state, num_classes)
    family = "mask_rcnn" if "roi_heads.mask_predictor.mask_fcn_logits.weight" in state else "faster_rcnn"
    if "backbone.body.0.0.weight" in state:
        return Imported(*_two_stage(f"{family}_mobilenet_v3_large_fpn"), tensors, num_classes)
    second = "_v2" if "rpn.head.conv.1.0.weight" in state else ""
    depth = resnet_of(tensors, "backbone.body.").depth
    eps = _first_eps(outputs, second)
    if f"{family}_resnet{depth}_fpn{second}" in ZOO:
        model, config = _two_stage(f"{family}_resnet{depth}_fpn{second}")
        return Imported(model, configure(config, eps), tensors, num_classes)
    model, config = _two_stage(f"{family}_resnet50_fpn{second}")
    return Imported(model, configure(config, {"backbone.depth": depth, **eps}), tensors, num_classes)


def _first_eps(outputs: int, second: str) -> dict[str, float]:
    """BatchNorm's eps is 0 in the first weights for COCO (`overwrite_eps`), and 1e-5 in all others."""
    return {"backbone.norm.eps": 0.0} if outputs == COCO_OUTPUTS and not second else {}


def _two_stage(model: str) -> tuple[str, TwoStageConfig]:
    """The name and its configuration."""
    config = named(model)
    assert isinstance(config, TwoStageConfig)
    return model, config


def _retinanet(state: Mapping[str, Tensor]) -> Imported:
    """RetinaNet, of which class 0 is background, which nothing learns."""
    tensors = {_renamed(name): tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    outputs = len(tensors["head.classes.bias"]) // ANCHORS
    num_classes = 80 if outputs == COCO_OUTPUTS else outputs - 1
    keep = _classes(outputs, num_classes)[1:]
    change(
        tensors, r"head\.classes\.(weight|bias)", lambda rows: rows.unflatten(0, (ANCHORS, -1))[:, keep].flatten(0, 1)
    )
    # Before a normalisation a convolution has no bias there.
    convs = [name.removesuffix(".weight") for name in tensors if re.fullmatch(r"head\.\w+_tower\.\d\.0\.weight", name)]
    tensors = {
        f"{name}.bias": tensors[f"{name}.weight"].new_zeros(len(tensors[f"{name}.weight"])) for name in convs
    } | tensors
    model, config, _ = read_architecture(tensors)
    sizes = tuple(tuple(float(int(size * 2 ** (k / 3))) for k in range(3)) for size in (32, 64, 128, 256, 512))
    fields = {
        "anchor_sizes": sizes,
        "anchor_rounding": "nearest",
        "anchor_stride": "canvas",
        "max_det": 300,
        "min_box_size": 0.0,
        **_first_eps(outputs, "_v2" if "head.class_tower.0.1.weight" in tensors else ""),
    }
    return Imported(model, configure(config, fields), tensors, num_classes)


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
    if (outputs, num_classes) == (COCO_OUTPUTS, 80):
        return torch.tensor([row for row in range(COCO_OUTPUTS) if row not in COCO_HOLES])
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
