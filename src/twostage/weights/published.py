"""Weights that have a name: what torchvision, Python packages, detectron2 and mmdetection publish."""

from pathlib import Path

from twostage.errors import UsageError, nearest
from twostage.folders import cache_folder
from twostage.weights.publishers import detectron2, mmdetection, packages, torchvision
from twostage.weights.publishers.entry import Published

# For somebody who has a photograph and no weights: the most accurate that is proven, and one for a laptop.
ACCURATE, SMALL = "faster_rcnn_resnet50_fpn_v2-coco", "faster_rcnn_mobilenet_v3_large_320_fpn-coco"

PUBLISHED = {
    one.name: one for one in (*packages.ENTRIES, *torchvision.ENTRIES, *detectron2.ENTRIES, *mmdetection.ENTRIES)
}


def published(name: str) -> Published:
    """The weights of a name. Raises UsageError with the nearest one."""
    if name not in PUBLISHED:
        raise UsageError(f"no published weights {name!r}. {nearest(name, PUBLISHED)}")
    return PUBLISHED[name]


def cached(one: Published) -> Path:
    """Where the converted file of published weights is, or will be."""
    return cache_folder("weights") / f"{one.name}.safetensors"
