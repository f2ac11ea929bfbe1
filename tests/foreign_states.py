"""The names and shapes of other projects' tensors, as their sources give them."""

from collections.abc import Sequence
from typing import Any

K, STUFF = 5, 7


def _detectron2_body(prefix: str, stages: Sequence[int] = (2, 3, 4, 5)) -> dict[str, tuple[int, ...]]:
    """A ResNet-50."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, outputs: int, inputs: int, side: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, side, side)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = (outputs,)

    if 2 in stages:
        layer(f"{prefix}stem.conv1", 64, 3, 7)
    inputs = 64 if 2 in stages else 1024
    for stage in stages:
        width = 64 << (stage - 2)
        for block in range({2: 3, 3: 4, 4: 6, 5: 3}[stage]):
            at = f"{prefix}res{stage}.{block}"
            if block == 0:
                layer(f"{at}.shortcut", width * 4, inputs, 1)
            layer(f"{at}.conv1", width, inputs, 1)
            layer(f"{at}.conv2", width, width, 3)
            layer(f"{at}.conv3", width * 4, width, 1)
            inputs = width * 4
    return shapes


def with_bias(name: str, outputs: int, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, *shape), f"{name}.bias": (outputs,)}


def detectron2_shapes(*, cascade: bool = False, mask: bool = False, anchors: int = 3) -> dict[str, tuple[int, ...]]:
    """Every tensor of a detector with a pyramid."""
    found = _detectron2_body("backbone.bottom_up.")
    for level in (2, 3, 4, 5):
        found |= with_bias(f"backbone.fpn_lateral{level}", 256, 64 << level, 1, 1)
        found |= with_bias(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    head = "proposal_generator.rpn_head"
    found |= with_bias(f"{head}.conv", 256, 256, 3, 3)
    found |= with_bias(f"{head}.objectness_logits", anchors, 256, 1, 1)
    found |= with_bias(f"{head}.anchor_deltas", 4 * anchors, 256, 1, 1)
    for k in range(5):
        found[f"proposal_generator.anchor_generator.cell_anchors.{k}"] = (anchors, 4)
    for stage in [".0", ".1", ".2"] if cascade else [""]:
        found |= with_bias(f"roi_heads.box_head{stage}.fc1", 1024, 256 * 49)
        found |= with_bias(f"roi_heads.box_head{stage}.fc2", 1024, 1024)
        found |= with_bias(f"roi_heads.box_predictor{stage}.cls_score", K + 1, 1024)
        found |= with_bias(f"roi_heads.box_predictor{stage}.bbox_pred", 4 if cascade else 4 * K, 1024)
    if mask:
        for k in range(1, 5):
            found |= with_bias(f"roi_heads.mask_head.mask_fcn{k}", 256, 256, 3, 3)
        found |= {"roi_heads.mask_head.deconv.weight": (256, 256, 2, 2), "roi_heads.mask_head.deconv.bias": (256,)}
        found |= with_bias("roi_heads.mask_head.predictor", K, 256, 1, 1)
    return found


def mmdetection_shapes(
    stages: int = 0, *, mask: bool = False, htc: bool = False, semantic: bool = False
) -> dict[str, Any]:
    """Every tensor of a detector with a pyramid; `stages` of a cascade, 0 without one."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(name: str, norm: str, *shape: int) -> None:
        found[f"backbone.{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"backbone.{norm}.{part}"] = shape[:1]
        found[f"backbone.{norm}.num_batches_tracked"] = ()

    def plain(name: str, *shape: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    layer("conv1", "bn1", 64, 3, 7, 7)
    inputs = 64
    for stage, depth in zip(range(1, 5), (3, 4, 6, 3), strict=True):
        width = 32 << stage
        for block in range(depth):
            at = f"layer{stage}.{block}"
            layer(f"{at}.conv1", f"{at}.bn1", width, inputs, 1, 1)
            layer(f"{at}.conv2", f"{at}.bn2", width, width, 3, 3)
            layer(f"{at}.conv3", f"{at}.bn3", width * 4, width, 1, 1)
            if block == 0:
                layer(f"{at}.downsample.0", f"{at}.downsample.1", width * 4, inputs, 1, 1)
            inputs = width * 4
    for level in range(4):
        plain(f"neck.lateral_convs.{level}.conv", 256, 256 << level, 1, 1)
        plain(f"neck.fpn_convs.{level}.conv", 256, 256, 3, 3)
    plain("rpn_head.rpn_conv", 256, 256, 3, 3)
    plain("rpn_head.rpn_cls", 3, 256, 1, 1)
    plain("rpn_head.rpn_reg", 12, 256, 1, 1)
    for stage in range(stages) if stages else [None]:
        head = "roi_head.bbox_head" + ("" if stage is None else f".{stage}")
        plain(f"{head}.shared_fcs.0", 1024, 256 * 49)
        plain(f"{head}.shared_fcs.1", 1024, 1024)
        plain(f"{head}.fc_cls", K + 1, 1024)
        plain(f"{head}.fc_reg", 4 if stages else 4 * K, 1024)
        if mask:
            head = head.replace("bbox", "mask")
            for k in range(4):
                plain(f"{head}.convs.{k}.conv", 256, 256, 3, 3)
            found[f"{head}.upsample.weight"], found[f"{head}.upsample.bias"] = (256, 256, 2, 2), (256,)
            plain(f"{head}.conv_logits", K, 256, 1, 1)
            if htc and stage:
                plain(f"{head}.conv_res.conv", 256, 256, 1, 1)
    if semantic:
        for k in range(5):
            plain(f"roi_head.semantic_head.lateral_convs.{k}.conv", 256, 256, 1, 1)
        for k in range(4):
            plain(f"roi_head.semantic_head.convs.{k}.conv", 256, 256, 3, 3)
        plain("roi_head.semantic_head.conv_embedding.conv", 256, 256, 1, 1)
        plain("roi_head.semantic_head.conv_logits", STUFF, 256, 1, 1)
    return found


def detectron2_retinanet_shapes() -> dict[str, tuple[int, ...]]:
    found = _detectron2_body("backbone.bottom_up.")
    for level in (3, 4, 5):
        found |= with_bias(f"backbone.fpn_lateral{level}", 256, 64 << level, 1, 1)
        found |= with_bias(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    found |= with_bias("backbone.top_block.p6", 256, 2048, 3, 3) | with_bias("backbone.top_block.p7", 256, 256, 3, 3)
    for k in range(4):
        found |= with_bias(f"head.cls_subnet.{2 * k}", 256, 256, 3, 3)
        found |= with_bias(f"head.bbox_subnet.{2 * k}", 256, 256, 3, 3)
    return found | with_bias("head.cls_score", 9 * K, 256, 3, 3) | with_bias("head.bbox_pred", 36, 256, 3, 3)


def mmdetection_retinanet_shapes() -> dict[str, tuple[int, ...]]:
    found = {name: shape for name, shape in mmdetection_shapes().items() if name.startswith("backbone.")}
    for level in range(3):
        found |= with_bias(f"neck.lateral_convs.{level}.conv", 256, 512 << level, 1, 1)
        found |= with_bias(f"neck.fpn_convs.{level}.conv", 256, 256, 3, 3)
    found |= with_bias("neck.fpn_convs.3.conv", 256, 2048, 3, 3) | with_bias("neck.fpn_convs.4.conv", 256, 256, 3, 3)
    for k in range(4):
        found |= with_bias(f"bbox_head.cls_convs.{k}.conv", 256, 256, 3, 3)
        found |= with_bias(f"bbox_head.reg_convs.{k}.conv", 256, 256, 3, 3)
    return (
        found | with_bias("bbox_head.retina_cls", 9 * K, 256, 3, 3) | with_bias("bbox_head.retina_reg", 36, 256, 3, 3)
    )


def detectron2_c4_shapes(*, dilated: bool = False) -> dict[str, tuple[int, ...]]:
    """Faster R-CNN on C4, or on DC5 with two linear layers."""
    found = _detectron2_body("backbone.", (2, 3, 4, 5) if dilated else (2, 3, 4))
    width = 2048 if dilated else 1024
    found |= with_bias("proposal_generator.rpn_head.conv", width, width, 3, 3)
    found |= with_bias("proposal_generator.rpn_head.objectness_logits", 15, width, 1, 1)
    found |= with_bias("proposal_generator.rpn_head.anchor_deltas", 60, width, 1, 1)
    if dilated:
        found |= with_bias("roi_heads.box_head.fc1", 1024, 2048 * 49) | with_bias("roi_heads.box_head.fc2", 1024, 1024)
    else:
        found |= _detectron2_body("roi_heads.", (5,))
    features = 1024 if dilated else 2048
    found |= with_bias("roi_heads.box_predictor.cls_score", K + 1, features)
    return found | with_bias("roi_heads.box_predictor.bbox_pred", 4 * K, features)


def mmdetection_c4_shapes(*, dilated: bool = False) -> dict[str, tuple[int, ...]]:
    """The same of mmdetection."""
    found = {name: shape for name, shape in mmdetection_shapes().items() if name.startswith("backbone.")}
    if not dilated:
        last = "backbone.layer4."
        found = {
            (name.replace(last, "roi_head.shared_head.layer4.") if name.startswith(last) else name): shape
            for name, shape in found.items()
        }
    width, features = (2048, 1024) if dilated else (1024, 2048)
    found |= with_bias("rpn_head.rpn_conv", width, width, 3, 3)
    found |= with_bias("rpn_head.rpn_cls", 15, width, 1, 1) | with_bias("rpn_head.rpn_reg", 60, width, 1, 1)
    if dilated:
        found |= with_bias("roi_head.bbox_head.shared_fcs.0", 1024, 2048 * 49)
        found |= with_bias("roi_head.bbox_head.shared_fcs.1", 1024, 1024)
    found |= with_bias("roi_head.bbox_head.fc_cls", K + 1, features)
    return found | with_bias("roi_head.bbox_head.fc_reg", 4 * K, features)


_VGG16 = ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2, (256, 512), *[(512, 512)] * 5)


def simple_faster_rcnn_shapes(width: int = 4096, *, dropout: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor of simple-faster-rcnn-pytorch's VGG16, whose classifier has so many units."""
    found: dict[str, tuple[int, ...]] = {}
    for place, (inputs, outputs) in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), _VGG16, strict=True):
        found |= with_bias(f"extractor.{place}", outputs, inputs, 3, 3)
    found |= with_bias("rpn.conv1", 512, 512, 3, 3)
    found |= with_bias("rpn.score", 18, 512, 1, 1) | with_bias("rpn.loc", 36, 512, 1, 1)
    found |= with_bias("head.classifier.0", width, 512 * 49)
    found |= with_bias(f"head.classifier.{3 if dropout else 2}", width, width)
    return found | with_bias("head.cls_loc", 4 * (K + 1), width) | with_bias("head.score", K + 1, width)


def py_faster_rcnn_shapes(net: str = "VGG16", width: int = 4096, anchors: int = 9) -> dict[str, tuple[int, ...]]:
    """Every blob of py-faster-rcnn's VGG16, or of its ZF trained in alternation."""
    if net == "VGG16":
        layers = [f"conv{block}_{k}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for k in range(1, count + 1)]
        sides, channels, name, cells = [3] * 13, _VGG16, "rpn_conv/3x3", 7
    else:
        layers, sides = [f"conv{k}" for k in range(1, 6)], [7, 5, 3, 3, 3]
        channels, name, cells = ((3, 96), (96, 256), (256, 384), (384, 384), (384, 256)), "rpn_conv1", 6
    found: dict[str, tuple[int, ...]] = {}
    for layer, side, (inputs, outputs) in zip(layers, sides, channels, strict=True):
        found |= with_bias(layer, outputs, inputs, side, side)
    last = channels[-1][1]
    found |= with_bias(name, last, last, 3, 3)
    found |= with_bias("rpn_cls_score", 2 * anchors, last, 1, 1)
    found |= with_bias("rpn_bbox_pred", 4 * anchors, last, 1, 1)
    found |= with_bias("fc6", width, last * cells * cells) | with_bias("fc7", width, width)
    return found | with_bias("cls_score", K + 1, width) | with_bias("bbox_pred", 4 * (K + 1), width)


def detectron_shapes(*, pyramid: bool = True) -> dict[str, tuple[int, ...]]:
    """Every blob of Detectron's Faster R-CNN on ResNet-50, with a pyramid or C4."""
    found: dict[str, tuple[int, ...]] = {"conv1_w": (64, 3, 7, 7), "res_conv1_bn_s": (64,), "res_conv1_bn_b": (64,)}

    def layer(name: str, *shape: int) -> None:
        found.update({f"{name}_w": shape, f"{name}_bn_s": shape[:1], f"{name}_bn_b": shape[:1]})

    def plain(name: str, *shape: int) -> None:
        found.update({f"{name}_w": shape, f"{name}_b": shape[:1]})

    inputs, last = 64, {2: 2, 3: 3, 4: 5, 5: 2}
    for stage, most in last.items():
        width = 16 << stage
        for block in range(most + 1):
            at = f"res{stage}_{block}"
            if block == 0:
                layer(f"{at}_branch1", width * 4, inputs, 1, 1)
            layer(f"{at}_branch2a", width, inputs, 1, 1)
            layer(f"{at}_branch2b", width, width, 3, 3)
            layer(f"{at}_branch2c", width * 4, width, 1, 1)
            inputs = width * 4
    if pyramid:
        for stage, most in last.items():
            lateral = "" if stage == 5 else "_lateral"
            plain(f"fpn_inner_res{stage}_{most}_sum{lateral}", 256, 64 << stage, 1, 1)
            plain(f"fpn_res{stage}_{most}_sum", 256, 256, 3, 3)
        plain("fc6", 1024, 256 * 49)
        plain("fc7", 1024, 1024)
    width, end, anchors = (256, "_fpn2", 3) if pyramid else (1024, "", 15)
    plain(f"conv_rpn{end}", width, width, 3, 3)
    plain(f"rpn_cls_logits{end}", anchors, width, 1, 1)
    plain(f"rpn_bbox_pred{end}", 4 * anchors, width, 1, 1)
    features = 1024 if pyramid else 2048
    plain("cls_score", K + 1, features)
    plain("bbox_pred", 4 * (K + 1), features)
    return found
