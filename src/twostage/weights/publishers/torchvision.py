"""torchvision's ImageNet backbones and COCO detectors.

Its licence is BSD-3-Clause; it gives none to its weights. ImageNet and COCO have terms of their own. Names, sizes and
numbers are those of its weight enumerations, with which the tests compare them.
"""

from types import MappingProxyType
from typing import Any

from twostage.weights.publishers.entry import Published, Publisher

TORCHVISION = Publisher(
    "torchvision",
    "https://download.pytorch.org/models/",
    "sha256",
    code="BSD-3-Clause",
    weights="BSD-3-Clause",
    note="the project's own licence: it gives none to its weights, and ImageNet and COCO have terms of their own",
)
_PROOF = "the same detections as torchvision itself, with random weights"
_PROOF_OF_BACKBONE = "the same outputs as torchvision itself, with random weights"
# torchvision, faster_rcnn.py, mask_rcnn.py and retinanet.py: overwrite_eps
_EPS_0 = MappingProxyType({"norm_eps": 0.0})
_BACKBONES: tuple[tuple[str, str, float, float], ...] = (
    ("vgg16-imagenet", "vgg16-397923af.pth", 527.796, 71.592),
    ("resnet18-imagenet", "resnet18-f37072fd.pth", 44.661, 69.758),
    ("resnet34-imagenet", "resnet34-b627a593.pth", 83.275, 73.314),
    ("resnet50-imagenet", "resnet50-0676ba61.pth", 97.781, 76.13),
    ("resnet50-imagenet-v2", "resnet50-11ad3fa6.pth", 97.79, 80.858),
    ("resnet101-imagenet", "resnet101-63fe2227.pth", 170.511, 77.374),
    ("resnet101-imagenet-v2", "resnet101-cd907fc2.pth", 170.53, 81.886),
    ("mobilenet_v3_large-imagenet", "mobilenet_v3_large-8738ca79.pth", 21.114, 74.042),
    ("mobilenet_v3_large-imagenet-v2", "mobilenet_v3_large-5c1a4163.pth", 21.107, 75.274),
)
_DETECTORS: tuple[tuple[Any, ...], ...] = (
    ("faster_rcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_coco-258fb6c6", 159.743, 37.0, None, _EPS_0),
    ("faster_rcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a", 167.104, 46.7),
    ("faster_rcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7", 74.239, 32.8),
    ("faster_rcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9", 74.239, 22.8),
    ("mask_rcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e", 169.84, 37.9, 34.6, _EPS_0),
    ("mask_rcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019", 177.219, 47.4, 41.8),
    ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_coco-eeacb38b", 130.267, 36.4, None, _EPS_0),
    ("retinanet_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2_coco-5905b1c5", 146.037, 41.5),
)


def _detector(
    name: str, file: str, size: float, score: float, masks: float | None = None, fields: Any = MappingProxyType({})
) -> Published:
    return Published(f"{name}-coco", TORCHVISION, f"{file}.pth", score, masks, size, fields=fields, proof=_PROOF)


ENTRIES = (
    *(
        Published(name, TORCHVISION, file, score, size=size, data="ImageNet", proof=_PROOF_OF_BACKBONE)
        for name, file, size, score in _BACKBONES
    ),
    *(_detector(*row) for row in _DETECTORS),
)
