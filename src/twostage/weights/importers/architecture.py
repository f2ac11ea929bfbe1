"""The detector that the tensors of a file show by their names and shapes: every ResNet detector of the zoo.

Importers rename to common names first: `backbone.` and `rpn.` as ours; a box head is `box.`, those of a cascade
`boxes.0.` and so on, mask heads are `mask.0.` and so on, HTC's further layers `flows.` and `semantic.`, RetinaNet's
head `head.`. `in_our_places` renames them to ours and turns what torch lays out otherwise.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from twostage.errors import DataError
from twostage.models.backbones.fpn import FPNConfig, PyramidConfig
from twostage.models.backbones.norm import NormConfig
from twostage.models.backbones.resnet import ResNetConfig
from twostage.models.config import OneStageConfig, TwoStageConfig
from twostage.models.configure import configure
from twostage.models.heads.bodies import BodyConfig, FourConvConfig, Res5Config, TwoMLPConfig
from twostage.models.heads.mask import MaskConfig, MaskTowerConfig
from twostage.models.heads.semantic import SemanticConfig
from twostage.models.zoo import ZOO
from twostage.weights.fit import channel_last
from twostage.weights.importers.imported import Config, change, renamed

_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}


class Architecture(NamedTuple):
    """A model of the zoo, its configuration with all that the tensors show, and the number of classes."""

    model: str
    config: Config
    num_classes: int


def read_architecture(tensors: Mapping[str, Tensor]) -> Architecture:
    """What tensors under the common names are of. Raises DataError where that is no detector of the zoo."""
    if "head.classes.weight" in tensors:
        return _one_stage(tensors)
    if not any(f"{head}.classes.weight" in tensors for head in ("box", "boxes.0")):
        raise DataError(
            "The weights have no layer that scores classes: they are of a network without a second stage, as an RPN or "
            "a classifier. Give those of a detector."
        )
    return _two_stage(tensors)


def in_our_places(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The tensors under our names and in our layout: a region's channels last, a transposed convolution as matrices."""
    if isinstance(config, OneStageConfig):
        return tensors
    channels = tensors["rpn.convs.0.weight"].shape[1]
    change(tensors, r"box.*\.body\.fc6\.weight", partial(channel_last, channels=channels))
    change(tensors, r"mask\.\d\.up\.weight", lambda weight: weight.permute(2, 3, 1, 0).flatten(0, 1))
    change(tensors, r"mask\.\d\.classes\.weight", lambda weight: weight.flatten(1))
    rules = [(r"^(box.*\.body\.)fc6\.", r"\1fc.")] if isinstance(config.box_head.body, FourConvConfig) else []
    if config.htc is not None:
        rules += [(r"^boxes\.", "head.cascade.boxes."), (r"^(mask|flows|semantic)\.", r"head.\1.")]
    elif config.cascade is not None:
        rules += [(r"^(boxes|mask)\.", r"head.\1.")]
    elif config.mask is not None:
        rules += [(r"^box\.", "head.box."), (r"^mask\.0\.", "head.mask.")]
    else:
        rules += [(r"^box\.", "head.")]
    return renamed(tensors, rules)


def _one_stage(tensors: Mapping[str, Tensor]) -> Architecture:
    """RetinaNet."""
    backbone = replace(resnet_of(tensors, "backbone.body."), first=2)
    model = _of_the_zoo("retinanet", backbone.depth, "fpn")
    config = ZOO[model]
    assert isinstance(config, OneStageConfig)
    width, inputs = tensors["backbone.extra.sixth.0.weight"].shape[:2]
    neck = replace(config.neck, channels=width, norm=_norm(tensors, "backbone.outputs.0.1"))
    if inputs != width:
        neck = replace(neck, extra="p6p7_of_body")
    head = replace(config.retinanet, convs=_count(tensors, r"head\.class_tower\.(\d)\.0\.weight"))
    if "head.class_tower.0.1.weight" in tensors:
        head = replace(head, norm="group")
    config = replace(config, backbone=backbone, neck=neck, retinanet=head)
    return Architecture(model, config, 4 * len(tensors["head.classes.bias"]) // len(tensors["head.deltas.bias"]))


def _two_stage(tensors: Mapping[str, Tensor]) -> Architecture:
    """A detector with regions."""
    if "rpn.convs.0.weight" not in tensors:
        raise DataError("The weights have no RPN: they are Fast R-CNN's, which needs proposals from elsewhere.")
    pyramid, cascade, masks = (
        name in tensors for name in ("backbone.outputs.0.0.weight", "boxes.0.classes.weight", "mask.0.up.weight")
    )
    kind = "fpn" if pyramid else "c4" if "box.body.layer4.0.conv1.weight" in tensors else "dc5"
    family = ("cascade_mask_rcnn" if masks else "cascade_rcnn") if cascade else "mask_rcnn" if masks else "faster_rcnn"
    if "flows.0.0.weight" in tensors or "semantic.logits.weight" in tensors:
        family = "hybrid_task_cascade"
    backbone = resnet_of(tensors, "backbone.body." if pyramid else "backbone.")
    model = _of_the_zoo(family, backbone.depth, kind)
    config = ZOO[model]
    assert isinstance(config, TwoStageConfig)
    assert isinstance(config.backbone, ResNetConfig)
    assert config.rpn is not None
    own = config.backbone
    backbone = replace(backbone, first=own.first, last=own.last, dilated=own.dilated)
    head = "boxes.0" if cascade else "box"
    width, inputs = tensors["rpn.convs.0.weight"].shape[:2]
    rpn = replace(
        config.rpn,
        convs=_count(tensors, r"rpn\.convs\.(\d)\.weight"),
        channels=None if width == inputs else width,
    )
    config = replace(
        config,
        backbone=backbone,
        neck=_neck(tensors) if pyramid else None,
        rpn=rpn,
        box_head=replace(config.box_head, body=_body(tensors, head, backbone)),
        mask=_mask(tensors, config.mask or MaskConfig()) if masks else None,
    )
    outputs = len(tensors[f"{head}.classes.weight"])
    if config.htc is not None:
        config = replace(
            config, htc=replace(config.htc, mask_flow="flows.0.0.weight" in tensors), semantic=_semantic(tensors)
        )
    if config.cascade is not None:
        of_first = masks and "mask.1.up.weight" not in tensors
        config = replace(config, cascade=replace(config.cascade, masks="first" if of_first else "every"))
    else:
        config = configure(config, {"class_agnostic": len(tensors["box.deltas.weight"]) == 4 and outputs > 2})
    return Architecture(model, config, outputs - 1)


def _of_the_zoo(family: str, depth: int, kind: str) -> str:
    """The model with a ResNet of that depth, or that with ResNet-50 where there is none."""
    for name in (f"{family}_resnet{depth}_{kind}", f"{family}_resnet50_{kind}"):
        if name in ZOO:
            return name
    raise DataError(f"The weights are of a {family} on the maps of {kind}: twostage has none.")


def resnet_of(tensors: Mapping[str, Tensor], prefix: str) -> ResNetConfig:
    """The body. Raises DataError for one of other depths."""
    blocks = _count(tensors, rf"{re.escape(prefix)}layer3\.(\d+)\.conv1\.weight")
    depth = _DEPTHS.get((blocks, f"{prefix}layer3.0.conv3.weight" in tensors))
    norm = _norm(tensors, f"{prefix}bn1")
    if depth is None or norm is None:
        raise DataError(
            f"The weights have {blocks} blocks in the third stage of their backbone: not those of ResNet-18, 34, 50 or "
            "101 with a normalisation (2, 6, 6 or 23)."
        )
    groups, width = 1, 64
    if depth >= 50:
        inner, width = tensors[f"{prefix}layer1.0.conv2.weight"].shape[:2]
        groups = inner // width
    frozen = NormConfig("frozen") if norm.kind == "batch" else norm
    return ResNetConfig(depth, groups=groups, width_per_group=width, norm=frozen)  # type: ignore[arg-type]


def _neck(tensors: Mapping[str, Tensor]) -> FPNConfig | PyramidConfig:
    width, norm = len(tensors["backbone.outputs.0.0.weight"]), _norm(tensors, "backbone.outputs.0.1")
    return PyramidConfig(channels=width) if norm is None else FPNConfig(width, norm=norm)


def _body(tensors: Mapping[str, Tensor], head: str, backbone: ResNetConfig) -> BodyConfig:
    """The layers of the box heads."""
    if f"{head}.body.layer4.0.conv1.weight" in tensors:
        return Res5Config(backbone.stride_in_1x1, backbone.norm)
    width = len(tensors[f"{head}.body.fc6.weight"])
    norm = _norm(tensors, f"{head}.body.convs.0.1")
    if norm is None:
        return TwoMLPConfig(width)
    return FourConvConfig(_count(tensors, rf"{re.escape(head)}\.body\.convs\.(\d)\.0\.weight"), width, norm)


def _mask(tensors: Mapping[str, Tensor], config: MaskConfig) -> MaskConfig:
    """The mask heads."""
    width = len(tensors["mask.0.up.bias"])
    convs = _count(tensors, r"mask\.0\.convs\.(\d)\.0\.weight")
    tower = MaskTowerConfig(convs=convs, norm=_norm(tensors, "mask.0.convs.0.1")) if convs else None
    return replace(config, paste="exact", channels=width, tower=tower)


def _semantic(tensors: Mapping[str, Tensor]) -> SemanticConfig | None:
    """HTC's semantic branch. One that has a lateral for every map of a pyramid reads all of them."""
    if "semantic.logits.weight" not in tensors:
        return None
    laterals = _count(tensors, r"semantic\.laterals\.(\d)\.0\.weight")
    levels = _count(tensors, r"backbone\.outputs\.(\d)\.0\.weight")
    return SemanticConfig(
        classes=len(tensors["semantic.logits.weight"]),
        convs=_count(tensors, r"semantic\.convs\.(\d)\.0\.weight"),
        maps="all" if laterals > levels else "regions",
    )


def _norm(tensors: Mapping[str, Tensor], name: str) -> NormConfig | None:
    """The normalisation of that name; none where there is none. 32 groups, which no tensor shows, are the paper's."""
    if f"{name}.running_mean" in tensors:
        return NormConfig("batch")
    return NormConfig("group", groups=32) if f"{name}.weight" in tensors else None


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers take the place of the group."""
    return len({found[1] for name in tensors if (found := re.fullmatch(pattern, name))})
