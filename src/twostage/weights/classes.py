"""Weights for other classes: the rows of classes with the same names are kept, the others are random.

The layers that have rows per class are those of class scores, of boxes unless they are class-agnostic, and of masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from twostage.models.config import DetectorConfig, TwoStageConfig
from twostage.models.heads.box import BoxHead
from twostage.models.heads.mask import MaskHead
from twostage.models.heads.retinanet import RetinaNetHead


class _Rows(NamedTuple):
    """The first axis of a layer's weight and bias: [outer, background + K, inner]."""

    outer: int
    background: int
    inner: int


def with_class_rows(
    model: nn.Module, state: Mapping[str, Tensor], given: Sequence[str], wanted: Sequence[str]
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The state dict of a detector of the classes `given`, with the rows of `model`, which has the classes `wanted`.

    The row of background stays where some class does; without one in common the layers are left out. Also returns the
    names of the tensors that have random rows, of classes that the detector did not have.
    """
    common = [(row, given.index(name)) for row, name in enumerate(wanted) if name in given]
    own, changed, partly = model.state_dict(), dict(state), set()
    for layer, rows in _class_layers(model).items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            old = changed.pop(name, None)
            if old is None or not common:
                continue
            new = own[name].clone()
            count = rows.outer * (rows.background + len(given)) * rows.inner
            if old.shape != (count, *new.shape[1:]):
                continue  # of another configuration: with boxes per class, or other anchors
            theirs, mine = (_by_class(tensor, rows) for tensor in (old, new))
            mine[:, : rows.background] = theirs[:, : rows.background]
            for row, source in common:
                mine[:, rows.background + row] = theirs[:, rows.background + source]
            changed[name] = new
            if len(common) < len(wanted):
                partly.add(name)
    return changed, frozenset(partly)


def with_class_weights(config: DetectorConfig, given: Sequence[str], wanted: Sequence[str]) -> DetectorConfig:
    """The configuration of a detector of the classes `given`, with the weights of the classes `wanted` in its loss.

    A class keeps its own; a new one has 1.
    """
    if not isinstance(config, TwoStageConfig):
        return config
    own = config.box_head.class_weights
    if own is None or len(own) != len(given):  # a wrong number is refused where the head is built
        return config
    weight_of = dict(zip(given, own, strict=True))
    weights = tuple(weight_of.get(name, 1.0) for name in wanted)
    return replace(config, box_head=replace(config.box_head, class_weights=weights))


def _class_layers(model: nn.Module) -> dict[str, _Rows]:
    layers = {}
    for place, module in model.named_modules():
        if isinstance(module, BoxHead):
            layers[f"{place}.classes"] = _Rows(1, background=1, inner=1)
            if not module.stage.class_agnostic:
                layers[f"{place}.deltas"] = _Rows(1, background=0, inner=4)
        elif isinstance(module, MaskHead):
            layers[f"{place}.classes"] = _Rows(1, background=0, inner=1)
        elif isinstance(module, RetinaNetHead):
            layers[f"{place}.classes"] = _Rows(module.anchors.per_position[0], background=0, inner=1)
    return layers


def _by_class(tensor: Tensor, rows: _Rows) -> Tensor:
    return tensor.unflatten(0, (rows.outer, -1, rows.inner))
