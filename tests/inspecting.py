"""Detectors whose scores and boxes differ from each other, for tests of the inspector."""

import numpy as np
import torch
from detectors import fields_of
from torch import nn

from twostage.data.scenes import NAMES, Scene
from twostage.detector import Detector

SMALL = {"size": 128, "max_size": 192, "rpn_top_test": 100, "rpn_keep_test": 40, "max_det": 20}

FAMILIES = {
    "faster_rcnn_tiny_fpn": "Faster R-CNN",
    "faster_rcnn_tiny": "Faster R-CNN",
    "fast_rcnn_tiny": "Fast R-CNN",
    "mask_rcnn_tiny_fpn": "Mask R-CNN",
    "cascade_mask_rcnn_tiny_fpn": "Cascade Mask R-CNN",
    "hybrid_task_cascade_tiny_fpn": "Hybrid Task Cascade",
    "retinanet_tiny_fpn": "RetinaNet",
    "rcnn_tiny": "R-CNN",
    "sppnet_tiny": "SPPnet",
    "sppnet_tiny_5_scales": "SPPnet",
}
"""A small model of each kind, and its name in the literature."""


def lively(name: str, **fields: object) -> Detector:
    """A detector whose scores and boxes differ from each other, with few proposals; it lacks some of the fields."""
    torch.manual_seed(0)
    detector = Detector.build(name, NAMES, device="cpu", choose_forms=False, **fields_of(name, **(SMALL | fields)))
    generator = torch.Generator().manual_seed(1)
    parts = [part for part in (getattr(detector.model, "rpn", None), detector.model.head) if part is not None]
    with torch.no_grad():
        for part in parts:
            for place, module in part.named_modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5, generator=generator)
                if place.endswith("classes") and isinstance(module, nn.Linear):
                    module.weight.sub_(module.weight.mean(dim=1, keepdim=True))
                if place.endswith(("deltas", "ridges")):  # boxes stay near their anchors
                    module.weight.mul_(0.3)
    return detector


def target_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The objects of a scene as a target."""
    return np.asarray(scene.boxes, dtype=np.float32), np.asarray(scene.labels, dtype=np.int64)
