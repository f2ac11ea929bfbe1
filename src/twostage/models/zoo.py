"""The named detectors: a table from name to configuration.

`faster_rcnn_*_fpn` have the common modern defaults (torchvision's detectors with a feature pyramid), `*_vgg16` and
`*_zf` those of the Faster R-CNN paper (Ren et al. 2015) and, where the paper gives none, of py-faster-rcnn.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from twostage.errors import UsageError, nearest
from twostage.models.backbones.efficientnet_lite import EfficientNetLiteConfig
from twostage.models.backbones.fpn import FPNConfig, PyramidConfig
from twostage.models.backbones.mobilenet import MobileNetV3Config
from twostage.models.backbones.norm import NormConfig
from twostage.models.backbones.resnet import ResNetConfig
from twostage.models.backbones.tiny import TinyConfig
from twostage.models.backbones.vgg import VGG16Config
from twostage.models.backbones.zf import ZFConfig
from twostage.models.config import DetectorConfig, OneStageConfig, StagewiseConfig, TwoStageConfig
from twostage.models.configure import MOVED, names_of, unknown
from twostage.models.heads.bodies import FourConvConfig, Res5Config, TwoMLPConfig
from twostage.models.heads.box import BoxHeadConfig, StageConfig
from twostage.models.heads.cascade import CascadeConfig
from twostage.models.heads.hybrid_task_cascade import HTCConfig
from twostage.models.heads.mask import MaskConfig, MaskTowerConfig
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.models.heads.retinanet import RetinaNetConfig
from twostage.models.heads.semantic import SemanticConfig
from twostage.models.image import ImageConfig, OwnSizeConfig
from twostage.models.proposals.anchors import AnchorConfig
from twostage.models.proposals.rpn import RPNConfig
from twostage.models.proposals.sources import ProposalConfig
from twostage.models.rcnn import WarpConfig
from twostage.models.regions.pooling import RoIAlignConfig, RoIPoolConfig
from twostage.models.sppnet import scaled
from twostage.models.stagewise import FLOOR, SVMHeadConfig

_BATCH = NormConfig("batch")

# Ren et al. 2015, sections 3.1 and 3.3; Girshick 2015, section 2.3.
_VGG16 = TwoStageConfig(
    image=ImageConfig(size=600, max_size=1000, divisor=1),
    backbone=VGG16Config(),
    neck=None,
    anchors=AnchorConfig(((128.0, 256.0, 512.0),), rounding="none", stride="fixed", in_padding=False),
    rpn=RPNConfig(
        objectness="softmax",
        cross_boundary=False,
        class_normaliser=256.0,
        box_normaliser="locations",
        loss_weight=10.0,
        beta=1.0,
        top_train=12000,
        top_test=6000,
        min_size=16.0,
    ),
    proposals=ProposalConfig(keep_train=2000, keep_test=300),
    roi=RoIPoolConfig(),
    box_head=BoxHeadConfig(TwoMLPConfig(4096, dropout=0.5), region_batch=128, box_beta=1.0),
    stage=StageConfig(),
    postprocess=PostprocessConfig(nms=0.3),
)
_ZF = replace(_VGG16, backbone=ZFConfig(), rpn=replace(_VGG16.rpn, channels=256), roi=RoIPoolConfig(6))  # type: ignore[type-var]


def _fast(config: TwoStageConfig, proposals: ProposalConfig) -> TwoStageConfig:
    """Fast R-CNN (Girshick 2015, section 2.3): no RPN, background at IoU 0.1 to 0.5."""
    stage = StageConfig(background_iou=(0.1, 0.5))
    return replace(config, anchors=None, rpn=None, proposals=proposals, stage=stage)


# Two images of 64 regions.
_FAST = ProposalConfig("selective_search", keep_train=2000, keep_test=2000)
_64_REGIONS = replace(_VGG16.box_head, region_batch=64)

_FPN = TwoStageConfig(
    image=ImageConfig(),
    backbone=ResNetConfig(50),
    neck=PyramidConfig(),
    anchors=AnchorConfig(),
    rpn=RPNConfig(),
    proposals=ProposalConfig(),
    roi=RoIAlignConfig(),
    box_head=BoxHeadConfig(),
    stage=StageConfig(),
    postprocess=PostprocessConfig(),
)
_V2 = replace(
    _FPN,
    backbone=ResNetConfig(50, norm=_BATCH),
    neck=FPNConfig(norm=_BATCH),
    rpn=RPNConfig(convs=2),
    box_head=BoxHeadConfig(FourConvConfig()),
)
_C4 = replace(
    _FPN,
    image=ImageConfig(divisor=1),
    backbone=ResNetConfig(50, first=3, last=3),
    neck=None,
    anchors=AnchorConfig(((32.0, 64.0, 128.0, 256.0, 512.0),), rounding="none", stride="fixed"),
    rpn=RPNConfig(top_train=12000, top_test=6000),
    roi=RoIAlignConfig(14, sampling_ratio=0, aligned=True),
    box_head=BoxHeadConfig(Res5Config()),
)
_DC5 = replace(
    _C4,
    backbone=ResNetConfig(50, first=4, dilated=True),
    rpn=RPNConfig(channels=512, top_train=12000, top_test=6000),
    roi=RoIAlignConfig(7, sampling_ratio=0, aligned=True),
    box_head=BoxHeadConfig(),
)
_MOBILE = replace(
    _FPN,
    backbone=MobileNetV3Config(),
    neck=FPNConfig(),
    anchors=AnchorConfig(((32.0, 64.0, 128.0, 256.0, 512.0),) * 3),
    rpn=RPNConfig(score_threshold=0.05),
)
_MOBILE_320 = replace(
    _MOBILE,
    image=ImageConfig(size=320, max_size=640),
    rpn=RPNConfig(score_threshold=0.05, top_test=150),
    proposals=ProposalConfig(keep_test=150),
)

# EfficientNet-Lite's published preprocessing.
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
_TINY_IMAGE = ImageConfig(size=320, max_size=640)
_TINY_HEAD = BoxHeadConfig(TwoMLPConfig(256), region_batch=128, region_positive_fraction=0.5)
# Soft-NMS is worth 1.2 points of AP on the cells of the blood-cells validation split, which touch. With `nms` 0.5, the
# detections with a score of 0.5 or more are those that hard NMS keeps.
_TINY_POSTPROCESS = PostprocessConfig(soft_nms="linear")
_TINY = TwoStageConfig(
    image=_TINY_IMAGE,
    backbone=TinyConfig(),
    neck=PyramidConfig(channels=64, extra="none"),
    anchors=AnchorConfig(((16.0,), (32.0,), (64.0,), (128.0,)), rounding="none", stride="fixed"),
    rpn=RPNConfig(batch=128, top_train=500, top_test=300),
    proposals=ProposalConfig(keep_train=300, keep_test=300),
    roi=RoIAlignConfig(aligned=True),
    box_head=_TINY_HEAD,
    stage=StageConfig(class_agnostic=True),
    postprocess=_TINY_POSTPROCESS,
)
_TINY_SINGLE = replace(
    _TINY,
    backbone=TinyConfig(single=True),
    neck=None,
    anchors=AnchorConfig(((16.0, 32.0, 64.0, 128.0),), rounding="none", stride="fixed"),
    rpn=RPNConfig(batch=128, top_train=2000, top_test=1000),
    roi=RoIPoolConfig(),
    # As in the papers: a quarter of the regions positive, a box for every class.
    box_head=replace(_TINY_HEAD, region_positive_fraction=0.25),
    stage=StageConfig(),
)

# torchvision's way to paste a mask into the image, for its weights.
_MASK = MaskConfig(paste="rounded")
# 8 of some 60 positives per image: on hard scenes worth 7 points of mask AP in the same three minutes of Mask R-CNN, 11
# of Cascade Mask R-CNN, since a step takes six tenths of the time.
_TINY_MASK = MaskConfig(channels=64, tower=MaskTowerConfig(RoIAlignConfig(14, aligned=True)), regions=8)


def _resnet(config: TwoStageConfig, depth: int) -> TwoStageConfig:
    return replace(config, backbone=ResNetConfig(depth))  # type: ignore[arg-type]


def _cascade(config: TwoStageConfig, mask: MaskConfig | None = None) -> TwoStageConfig:
    """Cascade R-CNN (Cai and Vasconcelos 2018), with masks Cascade Mask R-CNN (2019)."""
    return replace(config, stage=None, cascade=CascadeConfig(), mask=mask)


def _htc(config: TwoStageConfig, mask: MaskConfig) -> TwoStageConfig:
    """Hybrid Task Cascade (Chen et al. 2019)."""
    return replace(_cascade(config, mask), htc=HTCConfig(), semantic=SemanticConfig())


_OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # three sizes per level (Lin et al. 2017, "Focal Loss", section 4)


def _octaves(*sizes: float) -> AnchorConfig:
    return AnchorConfig(
        tuple(tuple(size * step for step in _OCTAVE) for size in sizes), rounding="none", stride="fixed"
    )


def _retinanet(depth: int) -> OneStageConfig:
    """RetinaNet with a feature pyramid from stride 8 to 128."""
    return OneStageConfig(
        image=ImageConfig(),
        backbone=ResNetConfig(depth, first=2),  # type: ignore[arg-type]
        neck=FPNConfig(extra="p6p7"),
        anchors=_octaves(32.0, 64.0, 128.0, 256.0, 512.0),
        retinanet=RetinaNetConfig(),
    )


# On the very pyramid of `faster_rcnn_tiny_fpn`.
_TINY_RETINANET = OneStageConfig(
    image=_TINY_IMAGE,
    backbone=TinyConfig(),
    neck=FPNConfig(64, extra="none"),
    anchors=_octaves(16.0, 32.0, 64.0, 128.0),
    # From random weights: without GroupNorm half the AP after three minutes on hard scenes.
    retinanet=RetinaNetConfig(convs=2, norm="group", top=300),
    postprocess=_TINY_POSTPROCESS,
)


def _lite(config: TwoStageConfig | OneStageConfig, variant: int = 0) -> Any:
    """The small detector of that kind around EfficientNet-Lite."""
    image = replace(_TINY_IMAGE, mean=_LITE_MEAN, std=_LITE_STD)
    return replace(config, image=image, backbone=EfficientNetLiteConfig(variant))  # type: ignore[arg-type]


# As `twostage lineage` trains them by default.
_RCNN_TINY = StagewiseConfig(
    image=OwnSizeConfig(),
    backbone=TinyConfig(single=True),
    proposals=ProposalConfig("selective_search", keep_train=500, keep_test=500),
    regions=WarpConfig(),
    head=SVMHeadConfig(TwoMLPConfig(256)),
    postprocess=PostprocessConfig(score_threshold=FLOOR, nms=0.3, min_box_size=1.0),
)

ZOO: dict[str, DetectorConfig] = {
    "rcnn_tiny": _RCNN_TINY,
    "sppnet_tiny": replace(_RCNN_TINY, regions=scaled(384, five=False)),
    "sppnet_tiny_5_scales": replace(_RCNN_TINY, regions=scaled(384, five=True)),
    "faster_rcnn_vgg16": _VGG16,
    "faster_rcnn_zf": _ZF,
    "faster_rcnn_resnet50_c4": _C4,
    "faster_rcnn_resnet50_dc5": _DC5,
    "faster_rcnn_resnet18_fpn": _resnet(_FPN, 18),
    "faster_rcnn_resnet34_fpn": _resnet(_FPN, 34),
    "faster_rcnn_resnet50_fpn": _FPN,
    "faster_rcnn_resnet101_fpn": _resnet(_FPN, 101),
    "faster_rcnn_resnet50_fpn_v2": _V2,
    "faster_rcnn_mobilenet_v3_large_fpn": _MOBILE,
    "faster_rcnn_mobilenet_v3_large_320_fpn": _MOBILE_320,
    "faster_rcnn_lite0_fpn": _lite(_TINY),
    "faster_rcnn_lite1_fpn": _lite(_TINY, 1),
    "faster_rcnn_lite2_fpn": _lite(_TINY, 2),
    "faster_rcnn_tiny_fpn": _TINY,
    "faster_rcnn_tiny": _TINY_SINGLE,
    "fast_rcnn_vgg16": _fast(replace(_VGG16, box_head=_64_REGIONS), _FAST),
    "fast_rcnn_zf": _fast(replace(_ZF, box_head=_64_REGIONS), _FAST),
    "fast_rcnn_tiny": _fast(_TINY_SINGLE, ProposalConfig("selective_search", keep_train=300, keep_test=300)),
    "mask_rcnn_resnet50_c4": replace(_C4, mask=MaskConfig(tower=None)),
    "mask_rcnn_resnet50_dc5": replace(_DC5, mask=MaskConfig()),
    "mask_rcnn_resnet18_fpn": replace(_resnet(_FPN, 18), mask=_MASK),
    "mask_rcnn_resnet50_fpn": replace(_FPN, mask=_MASK),
    "mask_rcnn_resnet101_fpn": replace(_resnet(_FPN, 101), mask=_MASK),
    "mask_rcnn_resnet50_fpn_v2": replace(_V2, mask=replace(_MASK, tower=MaskTowerConfig(norm=_BATCH))),
    "mask_rcnn_lite0_fpn": _lite(replace(_TINY, mask=_TINY_MASK)),
    "mask_rcnn_tiny_fpn": replace(_TINY, mask=_TINY_MASK),
    "cascade_rcnn_resnet18_fpn": _cascade(_resnet(_FPN, 18)),
    "cascade_rcnn_resnet50_fpn": _cascade(_FPN),
    "cascade_rcnn_resnet101_fpn": _cascade(_resnet(_FPN, 101)),
    "cascade_rcnn_lite0_fpn": _lite(_cascade(_TINY)),
    "cascade_rcnn_tiny_fpn": _cascade(_TINY),
    "cascade_mask_rcnn_resnet18_fpn": _cascade(_resnet(_FPN, 18), MaskConfig()),
    "cascade_mask_rcnn_resnet50_fpn": _cascade(_FPN, MaskConfig()),
    "cascade_mask_rcnn_resnet101_fpn": _cascade(_resnet(_FPN, 101), MaskConfig()),
    "cascade_mask_rcnn_lite0_fpn": _lite(_cascade(_TINY, _TINY_MASK)),
    "cascade_mask_rcnn_tiny_fpn": _cascade(_TINY, _TINY_MASK),
    "hybrid_task_cascade_resnet18_fpn": _htc(_resnet(_FPN, 18), MaskConfig()),
    "hybrid_task_cascade_resnet50_fpn": _htc(_FPN, MaskConfig()),
    "hybrid_task_cascade_resnet101_fpn": _htc(_resnet(_FPN, 101), MaskConfig()),
    "hybrid_task_cascade_lite0_fpn": _lite(_htc(_TINY, _TINY_MASK)),
    "hybrid_task_cascade_tiny_fpn": _htc(_TINY, _TINY_MASK),
    "retinanet_resnet18_fpn": _retinanet(18),
    "retinanet_resnet50_fpn": _retinanet(50),
    "retinanet_resnet101_fpn": _retinanet(101),
    "retinanet_lite0_fpn": _lite(_TINY_RETINANET),
    "retinanet_tiny_fpn": _TINY_RETINANET,
}


def require_known(names: Iterable[str]) -> None:
    """Raises UsageError for a name that no model's configuration has, with the nearest one."""
    known = {name for config in ZOO.values() for name in names_of(config)} | set(MOVED)
    for name in names:
        if name not in known:
            raise UsageError(unknown(name, known))


def named(name: str) -> DetectorConfig:
    """The configuration of that name. Raises UsageError for an unknown one, with the nearest."""
    if name not in ZOO:
        raise UsageError(f"There is no model {name!r}. {nearest(name, ZOO)}")
    return ZOO[name]
