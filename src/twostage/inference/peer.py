"""torchvision's detectors beside ours: the same network with the same classes, run as its users run it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from twostage.device import arithmetic
from twostage.models.image import AnyImageConfig, ImageConfig

PEERS = {
    "faster_rcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn",
    "faster_rcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2",
    "mask_rcnn_resnet50_fpn": "maskrcnn_resnet50_fpn",
    "mask_rcnn_resnet50_fpn_v2": "maskrcnn_resnet50_fpn_v2",
    "faster_rcnn_mobilenet_v3_large_fpn": "fasterrcnn_mobilenet_v3_large_fpn",
    "faster_rcnn_mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}
"""torchvision's names of the models that it has too."""


def build_peer(name: str, num_classes: int, image: AnyImageConfig, device: torch.device) -> nn.Module:
    """torchvision's detector of that name with random weights, for images of that size."""
    from torchvision.models import detection

    assert isinstance(image, ImageConfig)  # as every detector of `PEERS` has
    torch.manual_seed(0)
    build = getattr(detection, PEERS[name])
    sizes = {"min_size": image.size, "max_size": image.max_size}
    model: nn.Module = build(weights=None, weights_backbone=None, num_classes=num_classes + 1, **sizes)
    return model.to(device).eval()


@torch.inference_mode()
def predict_peer(model: nn.Module, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], precision: str) -> list[Any]:
    """Its detections from decoded images, on the host; another precision than fp32 by autocast."""
    device = next(model.parameters()).device
    tensors = [torch.tensor(image).permute(2, 0, 1).to(device).float() / 255 for image in images]
    with arithmetic(device, precision):
        outputs: list[dict[str, Tensor]] = model(tensors)
    return [{name: value.cpu() for name, value in one.items()} for one in outputs]
