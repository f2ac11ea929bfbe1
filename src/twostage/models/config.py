"""A detector's configuration: the components' own dataclasses put together. `zoo` has those with a name.

A component that is None is not there; a field that a model does not read does not exist in its configuration.
"""

from dataclasses import dataclass, field

from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.fpn import FPNConfig, PyramidConfig
from twostage.models.heads.box import BoxHeadConfig, StageConfig
from twostage.models.heads.cascade import CascadeConfig
from twostage.models.heads.hybrid_task_cascade import HTCConfig
from twostage.models.heads.mask import MaskConfig
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.models.heads.retinanet import RetinaNetConfig
from twostage.models.heads.semantic import SemanticConfig
from twostage.models.image import ImageConfig, OwnSizeConfig
from twostage.models.proposals.anchors import AnchorConfig
from twostage.models.proposals.rpn import RPNConfig
from twostage.models.proposals.sources import ProposalConfig
from twostage.models.rcnn import WarpConfig
from twostage.models.regions.pooling import RoIAlignConfig, RoIPoolConfig
from twostage.models.sppnet import SPPConfig
from twostage.models.stagewise import SVMHeadConfig


@dataclass(frozen=True)
class TwoStageConfig:
    """A two-stage detector. Either `rpn` and its `anchors` are there or proposals come from elsewhere; a second stage
    has one box head, a `stage`, or a `cascade` of them."""

    image: ImageConfig
    backbone: BackboneConfig
    neck: FPNConfig | PyramidConfig | None
    proposals: ProposalConfig
    roi: RoIAlignConfig | RoIPoolConfig
    box_head: BoxHeadConfig
    stage: StageConfig | None
    postprocess: PostprocessConfig
    anchors: AnchorConfig | None = None
    rpn: RPNConfig | None = None
    cascade: CascadeConfig | None = None
    mask: MaskConfig | None = None
    htc: HTCConfig | None = None
    semantic: SemanticConfig | None = None


@dataclass(frozen=True)
class OneStageConfig:
    """RetinaNet."""

    image: ImageConfig
    backbone: BackboneConfig
    neck: FPNConfig
    anchors: AnchorConfig
    retinanet: RetinaNetConfig
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)


@dataclass(frozen=True)
class StagewiseConfig:
    """R-CNN (`regions` are warped) or SPPnet (a pyramid from shared maps), trained stage by stage."""

    image: OwnSizeConfig
    backbone: BackboneConfig
    proposals: ProposalConfig
    regions: WarpConfig | SPPConfig
    head: SVMHeadConfig
    postprocess: PostprocessConfig


DetectorConfig = TwoStageConfig | OneStageConfig | StagewiseConfig
