"""torchvision's detectors, which are here to be asked themselves."""

from typing import Any

from torch import nn

from twostage.errors import DataError
from twostage.models.config import DetectorConfig
from twostage.parity.reference.network import State

# Its constructors and a tensor's name that only their state dicts have, in the order in which they are looked for.
_BUILDERS = (
    ("retinanet_resnet50_fpn_v2", ("head.classification_head.conv.0.1.weight",)),
    ("retinanet_resnet50_fpn", ("head.classification_head.cls_logits.weight",)),
    ("maskrcnn_resnet50_fpn_v2", ("roi_heads.mask_predictor.conv5_mask.weight", "roi_heads.box_head.0.0.weight")),
    ("maskrcnn_resnet50_fpn", ("roi_heads.mask_predictor.conv5_mask.weight",)),
    ("fasterrcnn_resnet50_fpn_v2", ("roi_heads.box_head.0.0.weight",)),
    ("fasterrcnn_resnet50_fpn", ("backbone.body.layer4.2.conv3.weight",)),
    ("fasterrcnn_mobilenet_v3_large_fpn", ("backbone.body.0.0.weight",)),
)
ANCHORS = 9  # of RetinaNet
COCO = 91  # classes with background


def build(state: State, config: DetectorConfig, where: str) -> nn.Module:
    """torchvision's own detector with these weights, and the sizes and last thresholds of a configuration.

    `coco`: whether it numbers classes as COCO does.

    Raises DataError where none has their names.
    """
    from torchvision.models import detection
    from torchvision.ops.misc import FrozenBatchNorm2d

    name = next((name for name, tensors in _BUILDERS if all(tensor in state for tensor in tensors)), None)
    if name is None:
        raise DataError(f"{where}: torchvision has no detector with these weights.")
    if name.startswith("retinanet"):
        classes = len(state["head.classification_head.cls_logits.bias"]) // ANCHORS
    else:
        classes = len(state["roi_heads.box_predictor.cls_score.bias"])
    post, image = config.postprocess, config.image
    numbers: dict[str, Any] = {"min_size": getattr(image, "size", 800), "max_size": getattr(image, "max_size", 1333)}
    if name.startswith("retinanet"):
        numbers |= {"score_thresh": post.score_threshold, "nms_thresh": post.nms, "detections_per_img": post.max_det}
    else:
        numbers |= {"box_score_thresh": post.score_threshold, "box_nms_thresh": post.nms}
        numbers["box_detections_per_img"] = post.max_det
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes, **numbers).eval()
    model.load_state_dict(dict(state))
    model.coco = classes == COCO
    if model.coco and not name.endswith("_v2"):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                module.eps = 0.0  # torchvision's overwrite_eps
    return model
