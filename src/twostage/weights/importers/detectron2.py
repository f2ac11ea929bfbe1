"""detectron2's ResNet detectors: Faster, Mask and Cascade R-CNN with a pyramid, C4 or DC5, and RetinaNet.

What differs from ours: images are BGR, resized by Pillow, and only their mean is subtracted; the stride of a bottleneck
is in its first 1 x 1 convolution, but in ResNeXt and networks trained from nothing; background is the last class; the
first linear layer reads a region channel first; the anchors of a position are sorted by size, then by ratio; RoIAlign
takes as many points as a bin has pixels; a cascade has one mask head; RetinaNet's P6 reads the body, and its boxes are
suppressed before they are clipped.
(detectron2: config/defaults.py, configs/, docs/notes/compatibility.md.)
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor

from twostage.errors import DataError
from twostage.models.backbones.resnet import ResNetConfig
from twostage.models.config import OneStageConfig
from twostage.models.configure import configure
from twostage.models.heads.bodies import Res5Config
from twostage.weights.importers.architecture import in_our_places, read_architecture
from twostage.weights.importers.imported import (
    Config,
    Imported,
    change,
    ratio_first,
    refuse,
    renamed,
    require_anchors,
    setting,
)

PROJECT = "detectron2"
MEAN = (123.675, 116.28, 103.53)  # RGB from 0 to 255; detectron2's configurations have BGR
STD = (58.395, 57.12, 57.375)  # of the networks that were not converted from Caffe2; that of the others is 1

_FIELDS: Mapping[str, Any] = {
    "rounding": "nearest",
    "resize_by": "pillow",
    "anchor_rounding": "none",
    "anchor_stride": "fixed",
    "min_box_size": 0.0,
}
_TWO_STAGE: Mapping[str, Any] = {
    "rpn_min_size": 1e-7,  # sides above 0
    "rpn_beta": 0.0,
    "box_beta": 0.0,
    "rpn_class_normaliser": 256.0,
    "roi_aligned": True,
    "roi_sampling_ratio": 0,
    "roi_max_samples": None,
    "level_eps": 0.0,
    "level_size_eps": 1e-8,
}
_CASCADE: Mapping[str, Any] = {
    "cascade_loss_weights": (1.0, 1.0, 1.0),
    "cascade_gradient": 1 / 3,
}
_RETINANET: Mapping[str, Any] = {"retinanet.clip_before_nms": False, "rpn_beta": 0.0}

_NAMES = (
    (r"^backbone\.bottom_up\.", "backbone.body."),
    (r"^(backbone\.(?:body\.)?)stem\.conv1\.norm\.", r"\1bn1."),
    (r"^(backbone\.(?:body\.)?)stem\.", r"\1"),
    *((rf"^((?:backbone|roi_heads)\.(?:body\.)?)res{k + 1}\.", rf"\1layer{k}.") for k in range(1, 5)),
    (r"(\.layer\d\..*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^backbone\.top_block\.p6\.", "backbone.extra.sixth.0."),
    (r"^backbone\.top_block\.p7\.", "backbone.extra.seventh.0."),
    (r"^proposal_generator\.rpn_head\.conv\.conv(\d)\.", r"rpn.convs.\1."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.convs.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.objectness."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.deltas."),
    (r"^roi_heads\.layer4\.", "box.body.layer4."),
    (r"^roi_heads\.box_(?:head|predictor)\.(\d)\.", r"boxes.\1."),
    (r"^roi_heads\.box_(?:head|predictor)\.", "box."),
    *((rf"^(box|boxes\.\d)\.conv{k + 1}\.norm\.", rf"\1.body.convs.{k}.1.") for k in range(4)),
    *((rf"^(box|boxes\.\d)\.conv{k + 1}\.", rf"\1.body.convs.{k}.0.") for k in range(4)),
    (r"^(box|boxes\.\d)\.fc1\.", r"\1.body.fc6."),
    (r"^(box|boxes\.\d)\.fc2\.", r"\1.body.fc7."),
    (r"^(box|boxes\.\d|head)\.cls_score\.", r"\1.classes."),
    (r"^(box|boxes\.\d|head)\.bbox_pred\.", r"\1.deltas."),
    *((rf"^roi_heads\.mask_head\.mask_fcn{k + 1}\.norm\.", f"mask.0.convs.{k}.1.") for k in range(8)),
    *((rf"^roi_heads\.mask_head\.mask_fcn{k + 1}\.", f"mask.0.convs.{k}.0.") for k in range(8)),
    (r"^roi_heads\.mask_head\.deconv\.", "mask.0.up."),
    (r"^roi_heads\.mask_head\.predictor\.", "mask.0.classes."),
)
_UNUSED = re.compile(r"^pixel_(mean|std)$|anchor_generator\.cell_anchors\.|num_batches_tracked$")
_OTHERS = {
    r"^roi_heads\.keypoint_": "Keypoint R-CNN",
    r"^sem_seg_head\.": "Panoptic FPN",
    r"\.conv2_offset\.": "deformable convolutions",
    r"^roi_heads\.densepose_": "DensePose",
    r"^backbone\.(bottom_up\.)?s\d\.": "a RegNet",
    r"^backbone\.net\.blocks\.": "ViTDet",
    r"^head\.ctrness\.": "FCOS",
}


def is_detectron2(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has these names."""
    return any(re.match(r"backbone\.(bottom_up\.)?stem\.conv1\.|proposal_generator\.", name) for name in state)


def from_detectron2(state: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> Imported:
    """The detector of a state dict, with the settings of its configuration (`read_yaml_config`) where they are given.

    Raises DataError for one of another kind, and for settings of another model.
    """
    refuse(state, PROJECT, _OTHERS)
    names = {name: tensor for name, tensor in state.items() if not _UNUSED.search(name)}
    tensors = renamed(names, (*_NAMES, *_of_levels(names), *_of_towers(names)))
    model, config, num_classes = read_architecture(tensors)
    config, given = _with_settings(config), {} if settings is None else _given(config, num_classes, settings)
    config = configure(config, given)
    require_anchors(tensors, config)
    if setting(settings, "INPUT.FORMAT") != "RGB":
        change(tensors, r"backbone\.(body\.)?conv1\.weight", lambda weight: weight.flip(1))
    _reorder(tensors, num_classes, len(config.anchors.ratios))  # type: ignore[union-attr]
    return Imported(model, config, in_our_places(tensors, config), num_classes, frozenset(given))


def _of_levels(names: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Rules for the pyramid, whose levels have the numbers of their stages; that of RetinaNet begins with the third."""
    levels = sorted(int(found[1]) for name in names if (found := re.match(r"backbone\.fpn_output(\d)\.weight", name)))
    rules = []
    for place, level in enumerate(levels):
        rules.append((rf"^backbone\.fpn_(lateral|output){level}\.norm\.", rf"backbone.\1s.{place}.1."))
        rules.append((rf"^backbone\.fpn_(lateral|output){level}\.", rf"backbone.\1s.{place}.0."))
    return rules


def _of_towers(names: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Rules for RetinaNet's towers, in whose numbers activations and normalisations count."""
    each = 3 if "head.cls_subnet.1.weight" in names else 2
    rules = []
    for theirs, ours in (("cls_subnet", "class_tower"), ("bbox_subnet", "box_tower")):
        for k in range(8):
            rules.append((rf"^head\.{theirs}\.{k * each}\.", f"head.{ours}.{k}.0."))
            rules.append((rf"^head\.{theirs}\.{k * each + 1}\.", f"head.{ours}.{k}.1."))
    return rules


def _reorder(tensors: dict[str, Tensor], num_classes: int, ratios: int) -> None:
    """Rows in our order and number."""
    change(tensors, r"box.*\.classes\.(weight|bias)", lambda rows: rows.roll(1, 0))  # background first for last
    change(tensors, r"(rpn\.objectness)\.(weight|bias)", partial(ratio_first, each=1, ratios=ratios))
    change(tensors, r"head\.classes\.(weight|bias)", partial(ratio_first, each=num_classes, ratios=ratios))
    change(tensors, r"(rpn|head)\.deltas\.(weight|bias)", partial(ratio_first, each=4, ratios=ratios))
    change(tensors, r"mask\.\d\.classes\.(weight|bias)", partial(_of_each_class, num_classes=num_classes))


def _of_each_class(rows: Tensor, num_classes: int) -> Tensor:
    """The row of a class-agnostic mask as that of every class: the same masks. In training the rows part."""
    return rows.repeat(num_classes, *[1] * (rows.ndim - 1)) if len(rows) == 1 else rows


def _with_settings(config: Config) -> Config:
    """The configuration with detectron2's settings."""
    backbone = config.backbone
    assert isinstance(backbone, ResNetConfig)
    # Networks converted from Caffe2's first ones; in training from nothing and in ResNeXt the stride is elsewhere.
    msra = backbone.depth >= 50 and backbone.groups == 1 and backbone.norm.kind == "frozen"
    std = STD if backbone.groups > 1 else (1.0, 1.0, 1.0)
    fields: dict[str, Any] = {
        **_FIELDS,
        "mean": tuple(value / 255 for value in MEAN),
        "std": tuple(value / 255 for value in std),
        "stride_in_1x1": msra,
    }
    if isinstance(config, OneStageConfig):
        return configure(config, {**fields, **_RETINANET})
    fields |= _TWO_STAGE
    if config.neck is not None:
        fields["rpn_keep_train"] = 1000
    if config.cascade is not None:
        fields |= _CASCADE
    return configure(config, fields)


_PATHS = {
    "size": "INPUT.MIN_SIZE_TEST",
    "max_size": "INPUT.MAX_SIZE_TEST",
    "anchor_ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "anchor_sizes": "MODEL.ANCHOR_GENERATOR.SIZES",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "max_det": "TEST.DETECTIONS_PER_IMAGE",
}
_PATHS_OF_REGIONS = {
    "rpn_top_train": "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "rpn_top_test": "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "rpn_keep_train": "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "rpn_keep_test": "MODEL.RPN.POST_NMS_TOPK_TEST",
    "rpn_nms": "MODEL.RPN.NMS_THRESH",
    "rpn_min_size": "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
    "rpn_delta_weights": "MODEL.RPN.BBOX_REG_WEIGHTS",
    "rpn_beta": "MODEL.RPN.SMOOTH_L1_BETA",
    "rpn_batch": "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "region_batch": "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "region_positive_fraction": "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "score_threshold": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "nms": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "roi.size": "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
    "roi_sampling_ratio": "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
    "box_beta": "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
}
_PATHS_OF_RETINANET = {
    "score_threshold": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "nms": "MODEL.RETINANET.NMS_THRESH_TEST",
    "rpn_top_test": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "rpn_delta_weights": "MODEL.RETINANET.BBOX_REG_WEIGHTS",
    "rpn_beta": "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
}


# Of a configuration that is given, what it leaves out (config/defaults.py).
_DEFAULTS: Mapping[str, Any] = {
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": MEAN[::-1],
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}
# What computes as this file says; anything else computes otherwise with the same tensors.
_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "MODEL.ANCHOR_GENERATOR.OFFSET": (0.0, 0),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlign", "ROIAlignV2"),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlign", "ROIAlignV2"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False,),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
}


def _given(config: Config, num_classes: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What settings say that the weights do not show, and what they leave out as detectron2's defaults have it.

    Raises DataError where they are of another model, or where something in them computes otherwise.
    """
    _require_same_model(config, num_classes, settings)
    for path, known in _KNOWN.items():
        said = setting(settings, path)
        if said is not None and said not in known:
            raise DataError(f"The settings have {path} {said!r}, which twostage does not compute: it has {known[0]!r}.")

    def at(path: str) -> Any:
        said = setting(settings, path)
        return _DEFAULTS.get(path) if said is None else said

    paths = {**_PATHS, **(_PATHS_OF_RETINANET if isinstance(config, OneStageConfig) else _PATHS_OF_REGIONS)}
    fields = {name: value for name, path in paths.items() if (value := at(path)) is not None}
    if fields.get("rpn_min_size") == 0:  # every side above 0
        del fields["rpn_min_size"]
    if cast(ResNetConfig, config.backbone).depth < 50:
        del fields["stride_in_1x1"]  # basic blocks have no 1 x 1
    if (ratios := fields.pop("anchor_ratios", None)) is not None:
        if any(each != ratios[0] for each in ratios):
            raise DataError(f"The settings have ASPECT_RATIOS {ratios}: those of all levels have to be the same.")
        fields["anchor_ratios"] = ratios[0]
    if not isinstance(config, OneStageConfig):
        cascade = config.cascade is not None
        path = "MODEL.ROI_BOX_CASCADE_HEAD" if cascade else "MODEL.ROI_BOX_HEAD"
        name = "cascade_delta_weights" if cascade else "box_delta_weights"
        fields[name] = setting(settings, f"{path}.BBOX_REG_WEIGHTS")
        fields["roi_aligned"] = {"ROIAlign": False, "ROIAlignV2": True}.get(at("MODEL.ROI_BOX_HEAD.POOLER_TYPE"))
        if config.mask is not None and config.mask.tower is not None:
            fields["mask_size"] = at("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION")
            fields["mask.tower.roi.sampling_ratio"] = at("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO")
    for part, path in (("box_head.body", "MODEL.ROI_BOX_HEAD"), ("mask.tower", "MODEL.ROI_MASK_HEAD")):
        if setting(settings, f"{path}.NORM") == "LN":  # which has the same tensors as GroupNorm
            fields |= {f"{part}.norm.kind": "layer", f"{part}.norm.eps": 1e-6}
    bgr = at("INPUT.FORMAT") != "RGB"
    for name, path in (("mean", "MODEL.PIXEL_MEAN"), ("std", "MODEL.PIXEL_STD")):
        fields[name] = tuple(value / 255 for value in (reversed(at(path)) if bgr else at(path)))
    return {name: value for name, value in fields.items() if value is not None}


def _require_same_model(config: Config, num_classes: int, settings: Mapping[str, Any]) -> None:
    """Raises DataError where settings are of another model than the tensors."""
    backbone = cast(ResNetConfig, config.backbone)
    shown: dict[str, Any] = {
        "MODEL.RESNETS.DEPTH": backbone.depth,
        "MODEL.RESNETS.NUM_GROUPS": backbone.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": backbone.width_per_group,
    }
    if isinstance(config, OneStageConfig):
        shown |= {"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.RETINANET.NUM_CLASSES": num_classes}
    else:
        shown |= {"MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES": num_classes}
        shown["MODEL.MASK_ON"] = config.mask is not None
        kind = "Res5ROIHeads" if isinstance(config.box_head.body, Res5Config) else "StandardROIHeads"
        shown["MODEL.ROI_HEADS.NAME"] = "CascadeROIHeads" if config.cascade is not None else kind
        if config.stage is not None:
            shown["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"] = config.stage.class_agnostic
        shown["MODEL.BACKBONE.NAME"] = "build_resnet_backbone" if config.neck is None else "build_resnet_fpn_backbone"
    for path, value in shown.items():
        given = setting(settings, path)
        if given is not None and given != value:
            raise DataError(
                f"The settings say {path} {given}, the weights show {value}: they are of different models. Give the "
                "configuration that these weights were trained with, or none."
            )
