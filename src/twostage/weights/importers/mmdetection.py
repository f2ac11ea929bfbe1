"""mmdetection's ResNet detectors, of versions 2 and 3: Faster, Mask and Cascade R-CNN, HTC and RetinaNet.

What differs from ours: images are resized by OpenCV; models of the style "caffe", those on C4 and DC5 among them, read
BGR with a deviation of 1 and have the stride in the first 1 x 1 convolution of a bottleneck; background is the last
class; the first linear layer reads a region channel first; a box shrinks no further than it grows; RoIAlign takes as
many points as a bin has pixels; a cascade averages logits; HTC's semantic branch reads all maps, and a box averages its
features; RetinaNet's P6 reads the body, and P7 reads P6 without ReLU.
(mmdetection: configs/_base_/models, mmdet/models. Version 3 reads only the last mask of HTC: here it is their mean, as
in version 2 and the paper.)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from twostage.errors import DataError
from twostage.models.backbones.resnet import ResNetConfig
from twostage.models.config import OneStageConfig
from twostage.models.configure import configure
from twostage.weights.importers.architecture import in_our_places, read_architecture
from twostage.weights.importers.imported import Config, Imported, change, refuse, renamed, require_anchors

PROJECT = "mmdetection"
MEAN = (123.675, 116.28, 103.53)  # RGB from 0 to 255


def _of_255(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(value / 255 for value in values)


def _weights(stds: Sequence[float]) -> tuple[float, ...]:
    return tuple(1 / std for std in stds)


_FIELDS: Mapping[str, Any] = {
    "rounding": "nearest",
    "resize_by": "opencv",
    "anchor_rounding": "none",
    "anchor_stride": "fixed",
    "min_box_size": 0.0,
    "delta_clamp_two_sided": True,
    "divisor": 32,
}
_TWO_STAGE: Mapping[str, Any] = {
    "rpn_min_size": 1e-7,  # sides above 0
    "rpn_beta": 0.0,
    "box_beta": 0.0,
    "roi_aligned": True,
    "roi_sampling_ratio": 0,
    "roi_max_samples": None,
    "level_eps": 0.0,
    "level_size_eps": 2.5e-7,  # 1e-6 of the box's size in 56 pixels
}
_CAFFE: Mapping[str, Any] = {"stride_in_1x1": True, "mean": _of_255(MEAN), "std": _of_255((1.0, 1.0, 1.0))}
_CASCADE: Mapping[str, Any] = {
    "cascade_scores": "logits",
    "cascade_delta_weights": tuple(_weights((a, a, b, b)) for a, b in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))),
    "rpn_beta": 1 / 9,
    "box_beta": 1.0,
}
_HTC: Mapping[str, Any] = {"score_threshold": 0.001}

_NAMES = (
    (r"^(backbone\..*?|backbone)\.gn(\d)\.", r"\1.bn\2."),
    (r"^(neck|semantic_head|bbox_head|roi_head)(.*)\.(?:gn|bn)\.", r"\1\2.norm."),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.laterals.\1.0."),
    (r"^neck\.lateral_convs\.(\d)\.norm\.", r"backbone.laterals.\1.1."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"backbone.outputs.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.norm\.", r"backbone.outputs.\1.1."),
    (r"^rpn_head\.rpn_conv\.(\d)\.conv\.", r"rpn.convs.\1."),
    (r"^rpn_head\.rpn_conv\.", "rpn.convs.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn.objectness."),
    (r"^rpn_head\.rpn_reg\.", "rpn.deltas."),
    (r"^roi_head\.shared_head\.layer4\.", "box.body.layer4."),
    (r"^roi_head\.bbox_head\.(\d)\.", r"boxes.\1."),
    (r"^roi_head\.bbox_head\.", "box."),
    (r"^(box(?:es\.\d)?)\.shared_convs\.(\d)\.conv\.", r"\1.body.convs.\2.0."),
    (r"^(box(?:es\.\d)?)\.shared_convs\.(\d)\.norm\.", r"\1.body.convs.\2.1."),
    (r"^(box(?:es\.\d)?)\.shared_fcs\.0\.", r"\1.body.fc6."),
    (r"^(box(?:es\.\d)?)\.shared_fcs\.1\.", r"\1.body.fc7."),
    (r"^(box(?:es\.\d)?)\.fc_cls\.", r"\1.classes."),
    (r"^(box(?:es\.\d)?)\.fc_reg\.", r"\1.deltas."),
    (r"^roi_head\.mask_head\.(?=[a-z])", "roi_head.mask_head.0."),
    *((rf"^roi_head\.mask_head\.{k + 1}\.conv_res\.conv\.", f"flows.{k}.0.") for k in range(2)),
    (r"^roi_head\.mask_head\.(\d)\.convs\.(\d)\.conv\.", r"mask.\1.convs.\2.0."),
    (r"^roi_head\.mask_head\.(\d)\.convs\.(\d)\.norm\.", r"mask.\1.convs.\2.1."),
    (r"^roi_head\.mask_head\.(\d)\.upsample\.", r"mask.\1.up."),
    (r"^roi_head\.mask_head\.(\d)\.conv_logits\.", r"mask.\1.classes."),
    (r"^roi_head\.semantic_head\.lateral_convs\.(\d)\.conv\.", r"semantic.laterals.\1.0."),
    (r"^roi_head\.semantic_head\.convs\.(\d)\.conv\.", r"semantic.convs.\1.0."),
    (r"^roi_head\.semantic_head\.conv_embedding\.conv\.", "semantic.embedding.0."),
    (r"^roi_head\.semantic_head\.conv_logits\.", "semantic.logits."),
    (r"^bbox_head\.cls_convs\.(\d)\.conv\.", r"head.class_tower.\1.0."),
    (r"^bbox_head\.cls_convs\.(\d)\.norm\.", r"head.class_tower.\1.1."),
    (r"^bbox_head\.reg_convs\.(\d)\.conv\.", r"head.box_tower.\1.0."),
    (r"^bbox_head\.reg_convs\.(\d)\.norm\.", r"head.box_tower.\1.1."),
    (r"^bbox_head\.retina_cls\.", "head.classes."),
    (r"^bbox_head\.retina_reg\.", "head.deltas."),
)
_BODY = (r"^backbone\.(?=(conv1|bn1|layer\d)\.)", "backbone.body.")
# RetinaNet's pyramid has three levels, and two more as its fourth and fifth.
_RETINANET = (
    (r"^backbone\.outputs\.3\.0\.", "backbone.extra.sixth.0."),
    (r"^backbone\.outputs\.4\.0\.", "backbone.extra.seventh.0."),
)
_UNUSED = re.compile(r"num_batches_tracked$|^data_preprocessor\.|^ema_")
_OTHERS = {
    r"conv_offset|\.conv2\.conv_offset": "deformable convolutions",
    r"^roi_head\.mask_iou_head\.": "Mask Scoring R-CNN",
    r"^mask_iou_head\.|^bbox_head\.fc_cls\.|^shared_head\.": "a file of version 1, without roi_head",
    r"\.atss_|centerness": "ATSS or FCOS",
    r"^neck\.(fpn_stages|downsample_convs|pafpn_convs)\.|^neck\.fpn\.": "a neck that is no plain FPN",
    r"^rpn_head\.stages\.": "Cascade RPN",
    r"^roi_head\.point_head\.|grid_head\.": "PointRend or Grid R-CNN",
    r"^backbone\.(stages|patch_embed|blocks)\.": "a transformer",
    r"^roi_head\.bbox_head\.(\d\.)?(cls_convs|reg_convs|cls_fcs|reg_fcs)\.": "a head with separate branches",
}


def is_mmdetection(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has these names."""
    return any(re.match(r"rpn_head\.rpn_(conv|cls)\.|bbox_head\.retina_cls\.", name) for name in state)


def from_mmdetection(state: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> Imported:
    """The detector of a state dict, with the settings of its configuration (`read_python_config`) where they are given.

    Raises DataError for one of another kind, and for settings of another model.
    """
    refuse(state, PROJECT, _OTHERS)
    names = {name: tensor for name, tensor in state.items() if not _UNUSED.search(name)}
    pyramid = any(name.startswith("neck.") for name in names)
    one_stage = any(name.startswith("bbox_head.retina_cls.") for name in names)
    tensors = renamed(names, (*_NAMES, *((_BODY,) if pyramid else ()), *(_RETINANET if one_stage else ())))
    model, config, num_classes = read_architecture(tensors)
    config = _with_settings(config)
    given = {} if settings is None else _given(model, config, num_classes, settings)
    config = configure(config, given)
    require_anchors(tensors, config)
    if _reads_bgr(config, settings or {}):
        change(tensors, r"backbone\.(body\.)?conv1\.weight", lambda weight: weight.flip(1))
    change(tensors, r"box.*\.classes\.(weight|bias)", lambda rows: rows.roll(1, 0))  # background first for last
    return Imported(model, config, in_our_places(tensors, config), num_classes, frozenset(given))


def _reads_bgr(config: Config, settings: Mapping[str, Any]) -> bool:
    """As the settings say; without any, as the networks that were converted from Caffe2 and Detectron's ResNeXt do."""
    rgb = _is_rgb(settings)
    if rgb is not None:
        return not rgb
    backbone = cast(ResNetConfig, config.backbone)
    of_detectron = (backbone.groups, backbone.width_per_group) == (32, 8) or backbone.norm.kind == "group"
    return backbone.stride_in_1x1 or of_detectron


def _is_rgb(settings: Mapping[str, Any]) -> bool | None:
    """Whether images enter in RGB; None without settings. What is left out is False in version 3 and True in 2."""
    norm = _normalisation(settings)
    if not norm:
        return None
    return norm.get("bgr_to_rgb", norm.get("to_rgb", _at(settings, "model", "data_preprocessor") is None))


def _normalisation(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Version 3 has it in the model, version 2 beside it."""
    norm = _at(settings, "model", "data_preprocessor") or settings.get("img_norm_cfg") or {}
    return norm if isinstance(norm, Mapping) else {}


def _with_settings(config: Config) -> Config:
    """The configuration with mmdetection's settings."""
    if isinstance(config, OneStageConfig):
        return configure(config, {**_FIELDS, "rpn_beta": 0.0, "neck.extra": f"{config.neck.extra}_linear"})
    fields = {**_FIELDS, **_TWO_STAGE}
    if cast(ResNetConfig, config.backbone).norm.kind == "group":
        fields["std"] = _CAFFE["std"]
    if config.neck is None:
        fields |= _CAFFE
    elif config.cascade is None:
        fields["rpn_keep_train"] = 1000
    if config.cascade is not None:
        fields |= _CASCADE
    if config.htc is not None:
        fields |= _HTC
    if config.semantic is not None:
        fields["semantic.averaged"] = True
    return configure(config, fields)


_KINDS = {
    "FasterRCNN": "faster_rcnn",
    "MaskRCNN": "mask_rcnn",
    "CascadeRCNN": "cascade_",
    "HybridTaskCascade": "hybrid_task_cascade",
    "HTC": "hybrid_task_cascade",
    "RetinaNet": "retinanet",
}


# Types that compute as this file says; any other computes something else under the same names.
_TYPES: Mapping[str, tuple[Any, ...]] = {
    "model.backbone.type": ("ResNet", "ResNeXt"),
    "model.neck.type": ("FPN",),
    "model.rpn_head.anchor_generator.type": ("AnchorGenerator",),
    "model.bbox_head.anchor_generator.type": ("AnchorGenerator",),
    "model.rpn_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
    "model.bbox_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
    "model.roi_head.bbox_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
    "model.roi_head.bbox_roi_extractor.type": ("SingleRoIExtractor",),
    "model.roi_head.bbox_roi_extractor.roi_layer.type": ("RoIAlign",),
    "model.roi_head.mask_roi_extractor.type": ("SingleRoIExtractor",),
    "model.roi_head.mask_roi_extractor.roi_layer.type": ("RoIAlign",),
    "model.test_cfg.rcnn.nms.type": ("nms", "soft_nms"),
    "model.test_cfg.rpn.nms.type": ("nms",),
    "model.test_cfg.nms.type": ("nms", "soft_nms"),
    "model.rpn_head.anchor_generator.center_offset": (0, 0.0),
    "model.rpn_head.anchor_generator.scale_major": (True,),
    "model.roi_head.mask_info_flow": (True,),
    "model.backbone.conv_cfg.type": ("Conv2d", "Conv"),
    "model.neck.add_extra_convs": (False, True, "on_input", "on_output"),
}


def _given(model: str, config: Config, num_classes: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What settings say that the weights do not show.

    Raises DataError where they are of another model, or where something in them computes otherwise.
    """
    theirs = settings.get("model") or {}
    kind, depth = theirs.get("type"), _at(theirs, "backbone", "depth")
    own = cast(ResNetConfig, config.backbone)
    if kind not in _KINDS or not model.startswith(_KINDS[kind]) or depth not in (None, own.depth):
        raise DataError(
            f"The settings are of a {kind} around a backbone of depth {depth}, the weights of {model} around one of "
            f"depth {own.depth}. Give the settings that these weights were trained with, or none."
        )
    heads = _at(theirs, "roi_head", "bbox_head") or theirs.get("bbox_head")
    classes = _at(heads[0] if isinstance(heads, list) else heads, "num_classes")
    groups = _at(theirs, "backbone", "groups") or 1
    for name, said, shown in (("num_classes", classes, num_classes), ("groups of the backbone", groups, own.groups)):
        if said not in (None, shown):
            raise DataError(
                f"The settings say {name} {said}, the weights show {shown}: they are of different models. Give the "
                "settings that these weights were trained with, or none."
            )
    for path, known in _TYPES.items():
        said = _at(settings, *path.split("."))
        if said is not None and said not in known:
            raise DataError(f"The settings have {path} {said!r}, which twostage does not compute: it has {known[0]!r}.")
    fields = {**_image(settings, theirs), **_anchors(theirs), **_post(settings, theirs)}
    if isinstance(config, OneStageConfig) or config.mask is None:
        fields.pop("mask.threshold")
    if isinstance(config, OneStageConfig):
        fields["rpn_delta_weights"] = _inverted(_at(theirs, "bbox_head", "bbox_coder", "target_stds"))
        linear = "" if _at(theirs, "neck", "relu_before_extra_convs") else "_linear"
        fields["neck.extra"] = config.neck.extra.removesuffix("_linear") + linear
    else:
        fields |= _regions(theirs, cascade=config.cascade is not None, masks=config.mask is not None)
    if own.depth < 50:
        fields.pop("stride_in_1x1")  # basic blocks have no 1 x 1
    return {name: value for name, value in fields.items() if value is not None}


def _inverted(stds: Any) -> tuple[float, ...] | None:
    return _weights(stds) if stds else None


def _image(settings: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Of the preprocessing."""
    norm = _normalisation(settings)
    rgb = _is_rgb(settings)
    mean, std = (norm.get(name) and (norm[name] if rgb else norm[name][::-1]) for name in ("mean", "std"))
    pipeline = settings.get("test_pipeline") or _at(settings, "data", "test", "pipeline")
    steps = list(_steps(pipeline))
    sides = next((sorted(step["scale"]) for step in steps if "scale" in step), (None, None))
    stretched = any(step.get("keep_ratio") is False for step in steps)
    style = _at(model, "backbone", "style")
    padded = [step["size_divisor"] for step in steps if step.get("size_divisor")]
    return {
        "mean": mean and _of_255(mean),
        "std": std and _of_255(std),
        "size": sides[0],
        "max_size": sides[1],
        "resize": "fixed" if stretched else None,
        "divisor": norm.get("pad_size_divisor", padded[0] if padded else None),
        "stride_in_1x1": None if style is None else style == "caffe",
    }


def _steps(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The steps of a pipeline, those of nested ones too; `scale` only where it is two sides."""
    for step in pipeline or ():
        if not isinstance(step, Mapping):
            continue
        scale = step.get("scale") or step.get("img_scale")
        two = isinstance(scale, list) and len(scale) == 2 and all(isinstance(side, int) for side in scale)
        yield {**{key: value for key, value in step.items() if key != "scale"}, **({"scale": scale} if two else {})}
        yield from _steps(step.get("transforms"))


def _anchors(model: Mapping[str, Any]) -> dict[str, Any]:
    """Of the anchors of the RPN, or of RetinaNet."""
    generator = _at(model, "rpn_head", "anchor_generator") or _at(model, "bbox_head", "anchor_generator") or {}
    scales, strides = generator.get("scales"), generator.get("strides")
    if strides:  # of both sides, where it is not one number
        strides = [stride[0] if isinstance(stride, list) else stride for stride in strides]
    if generator.get("octave_base_scale") and generator.get("scales_per_octave"):
        each = generator["scales_per_octave"]
        scales = [generator["octave_base_scale"] * 2 ** (k / each) for k in range(each)]
    sizes = scales and strides and tuple(tuple(float(stride * scale) for scale in scales) for stride in strides)
    return {"anchor_sizes": sizes, "anchor_ratios": generator.get("ratios")}


def _regions(model: Mapping[str, Any], *, cascade: bool, masks: bool) -> dict[str, Any]:
    """Of the RPN and the second stage."""
    head = _at(model, "roi_head", "bbox_head")
    extractor, of_masks = (_at(model, "roi_head", f"{kind}_roi_extractor") or {} for kind in ("bbox", "mask"))
    layer, mask_layer = (each.get("roi_layer") or {} for each in (extractor, of_masks))
    heads = head if isinstance(head, list) else [head or {}]
    stds = [_at(each, "bbox_coder", "target_stds") or each.get("target_stds") for each in heads]
    weights = None if None in stds else tuple(_weights(each) for each in stds if each is not None)
    finest = extractor.get("finest_scale")
    fields = {
        "rpn_delta_weights": _inverted(_at(model, "rpn_head", "bbox_coder", "target_stds")),
        "roi_sampling_ratio": layer.get("sampling_ratio", layer.get("sample_num")),
        "roi_aligned": layer.get("aligned"),
        "roi.size": layer.get("output_size", layer.get("out_size")),
        "roi.canonical_size": None if finest is None else 4.0 * finest,
        "cascade_delta_weights" if cascade else "box_delta_weights": weights if cascade or not weights else weights[0],
    }
    if masks and mask_layer:
        fields["mask_size"] = mask_layer.get("output_size", mask_layer.get("out_size"))
        fields["mask.tower.roi.sampling_ratio"] = mask_layer.get("sampling_ratio", mask_layer.get("sample_num"))
    return fields


def _post(settings: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Of the tests' thresholds and numbers."""
    test = model.get("test_cfg") or settings.get("test_cfg") or {}
    rpn, last = test.get("rpn") or {}, test.get("rcnn") or test
    nms = last.get("nms") or {}
    least = rpn.get("min_bbox_size")
    two_stage = {
        "rpn_top_test": rpn.get("nms_pre"),
        "rpn_keep_test": rpn.get("max_per_img", rpn.get("max_num", rpn.get("nms_post"))),
        "rpn_nms": _at(rpn, "nms", "iou_threshold") or rpn.get("nms_thr"),
        "rpn_min_size": least or None,  # 0: every box that has an area
    }
    fields = {
        **(two_stage if rpn else {"rpn_top_test": last.get("nms_pre")}),
        "score_threshold": last.get("score_thr"),
        "nms": nms.get("iou_threshold") or nms.get("iou_thr"),
        "nms_across_classes": nms.get("class_agnostic"),
        "max_det": last.get("max_per_img"),
        "mask.threshold": last.get("mask_thr_binary"),
    }
    if nms.get("type") == "soft_nms":  # its values are mmcv's
        fields["soft_nms"] = nms.get("method", "linear")
        fields["soft_nms_sigma"] = nms.get("sigma", 0.5)
        fields["soft_nms_min_score"] = nms.get("min_score", 1e-3)
    return fields


def _at(values: Any, *path: str) -> Any:
    """The value at a path of dictionaries; None where there is none."""
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values
