"""Sets values of a configuration by name, `rpn.nms` or its short form `rpn_nms`: from flags, keywords and files."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from twostage.errors import UsageError, nearest
from twostage.kinds import coerce, describe, matches
from twostage.models.backbones.efficientnet_lite import EfficientNetLiteConfig
from twostage.models.backbones.timm import PREFIX, TimmConfig, pretrained_cfg
from twostage.models.backbones.tiny import TinyConfig
from twostage.models.component import Leaf, leaves, with_value
from twostage.models.config import DetectorConfig, OneStageConfig, StagewiseConfig, TwoStageConfig
from twostage.models.image import ImageConfig
from twostage.models.regions.pooling import RoIAlignConfig, RoIPoolConfig

C = TypeVar("C", bound=TwoStageConfig | OneStageConfig | StagewiseConfig)

_ROI = {"align": RoIAlignConfig, "pool": RoIPoolConfig}
MOVED = {
    "recipe": "a recipe belongs to training: give --recipe",
    "proposals_seed": "the seed of proposals belongs to them: give it to `twostage data proposals --seed`",
}
"""What weights files written before hold beside the model's configuration."""


def configure(config: C, values: Mapping[str, Any]) -> C:
    """The configuration with some values replaced; they may come from Python, JSON, YAML or the command line.

    `proposals` other than "network" leaves out the RPN, `roi` chooses the pooling. A `size` without a `max_size` keeps
    the ratio of the two. Raises UsageError for a name that the configuration does not have, with the nearest one, and
    for a value of the wrong kind.
    """
    given = dict(values)
    config = _with_pooling(config, given)
    config = _with_source(config, given)
    known = _by_name(config)
    before, changed = config.image, set()
    for name, value in given.items():
        if name not in known:
            raise UsageError(unknown(name, known))
        for leaf in known[name]:
            good = coerce(value, leaf.kind)
            if not matches(good, leaf.kind):
                raise UsageError(f"The model's field {name} cannot be {value!r}: it takes {describe(leaf.kind)}.")
            config = with_value(config, leaf.path, good)
            changed.add(leaf.path)
    after = config.image
    if "image.max_size" not in changed and isinstance(before, ImageConfig) and isinstance(after, ImageConfig):
        longest = round(after.size * before.max_size / before.size)
        config = with_value(config, "image.max_size", max(1, longest))
    return config


def with_timm(config: C, given: str) -> C:
    """The configuration around the network `timm:NAME`, with images normalised as its weights want them.

    Raises MissingError without timm, UsageError for another prefix and for a name that timm does not have.
    """
    name = given.removeprefix(PREFIX)
    if name == given:
        raise UsageError(f"backbone is {given!r}: give {PREFIX}NAME, a network of timm, such as {PREFIX}resnet18.")
    published = pretrained_cfg(name)
    red, green, blue = map(float, published.mean)
    image = replace(config.image, mean=(red, green, blue))
    red, green, blue = map(float, published.std)
    image = replace(image, std=(red, green, blue))
    return replace(config, image=image, backbone=TimmConfig(name))  # type: ignore[arg-type]


def names_of(config: DetectorConfig) -> set[str]:
    """Every name that a value of the configuration has."""
    return {*_by_name(config), *(("roi",) if isinstance(config, TwoStageConfig) else ())}


def _by_name(config: DetectorConfig) -> dict[str, list[Leaf]]:
    known: dict[str, list[Leaf]] = {}
    for leaf in leaves(config):
        for name in leaf.names:
            known.setdefault(name, []).append(leaf)
    return known


def _with_pooling(config: C, given: dict[str, Any]) -> C:
    """The region pooling that `roi` names, with the size of the one before."""
    kind = given.pop("roi", None)
    if kind is None:
        return config
    if not isinstance(config, TwoStageConfig):
        raise UsageError(unknown("roi", _by_name(config)))
    if kind not in _ROI:
        raise UsageError(f"The model's field roi cannot be {kind!r}: it takes {' or '.join(map(repr, _ROI))}.")
    if isinstance(config.roi, _ROI[kind]):
        return config
    size = config.roi.size
    # All RoIAligns of the small networks are aligned.
    small = isinstance(config.backbone, TinyConfig | EfficientNetLiteConfig)
    return replace(config, roi=RoIPoolConfig(size) if kind == "pool" else RoIAlignConfig(size, aligned=small))


def _with_source(config: C, given: Mapping[str, Any]) -> C:
    """Without the RPN where proposals come from elsewhere."""
    source = next(
        (given[name] for name in ("proposals", "proposals.source", "proposals_source") if name in given), None
    )
    if source is None or isinstance(config, OneStageConfig):
        return config
    if source != "network":
        return config if isinstance(config, StagewiseConfig) else replace(config, rpn=None, anchors=None)
    if isinstance(config, StagewiseConfig) or config.rpn is None:
        raise UsageError("proposals is 'network', and this model has no RPN: choose a faster_rcnn_* model.")
    return config


def unknown(name: str, known: Iterable[str]) -> str:
    """The message for a name that is none of those known: the nearest, or the paths of all values."""
    if name in MOVED:
        return f"{name} is not a field of the model; {MOVED[name]}."
    if inside := sorted(each for each in known if each.startswith(f"{name}.")):
        return f"{name} is a component of the model: set one of its values ({', '.join(inside)})."
    return f"The model has no field {name!r}. {nearest(name, known, sorted(each for each in known if '.' in each))}"
