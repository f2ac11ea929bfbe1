"""What an importer makes of a state dict, and what all importers share."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from twostage.errors import DataError
from twostage.models.config import OneStageConfig, TwoStageConfig

Config = TwoStageConfig | OneStageConfig


UNLIMITED = 80.0
"""A limit of dw and dh that no network reaches, of which float32 still holds the exponential."""


class Imported(NamedTuple):
    """A detector from elsewhere.

    `model` is the name in the zoo whose configuration `config` began from, `tensors` have our names, `given` are the
    fields that came from a file of settings.
    """

    model: str
    config: Config
    tensors: dict[str, Tensor]
    num_classes: int
    given: frozenset[str] = frozenset()


def renamed(state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The tensors with every rule, a pattern and what replaces it, applied to their names in turn."""
    tensors = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    return tensors


def change(tensors: dict[str, Tensor], pattern: str, function: Callable[[Tensor], Tensor]) -> None:
    """Replaces the tensors whose whole name fits."""
    for name in [name for name in tensors if re.fullmatch(pattern, name)]:
        tensors[name] = function(tensors[name])


def ratio_first(rows: Tensor, each: int, ratios: int = 3) -> Tensor:
    """The rows of a layer that predicts `each` values for every anchor, sorted by ratio, then by size.

    They come sorted by size, then by ratio.
    """
    return rows.unflatten(0, (-1, ratios, each)).transpose(0, 1).flatten(0, 2)


def without_background(rows: Tensor) -> Tensor:
    """The rows of a box regressor, four of each class, without those of background, which is first."""
    return rows[4:]


def require_anchors(tensors: Mapping[str, Tensor], config: Config) -> None:
    """Raises DataError where a position has another number of anchors than the configuration."""
    layer = "head.deltas.bias" if isinstance(config, OneStageConfig) else "rpn.deltas.bias"
    shown, anchors = len(tensors[layer]) // 4, config.anchors
    if anchors is not None and shown != len(anchors.ratios) * len(anchors.sizes[0]):
        raise DataError(
            f"The weights have {shown} anchors at a position, and these settings {len(anchors.ratios)} ratios of "
            f"{len(anchors.sizes[0])} sizes. Give the configuration of these weights, which has their own."
        )


def refuse(state: Iterable[str], project: str, parts: Mapping[str, str]) -> None:
    """Raises DataError for a part that is not converted: a pattern in the names, and what it is."""
    for pattern, what in parts.items():
        found = next((name for name in state if re.search(pattern, name)), None)
        if found is not None:
            raise DataError(f"{project}'s {found} belongs to {what}, which is not converted.")


def setting(values: Any, path: str) -> Any:
    """The value of a setting, such as TEST.NMS; None where there is none. A tuple in Python's notation is one.

    Raises DataError for what only looks like one.
    """
    for name in path.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    if isinstance(values, str) and values.startswith(("(", "[")):
        try:
            return ast.literal_eval(values)
        except (SyntaxError, ValueError):
            raise DataError(f"The settings have {path} {values!r}, which is no list of values.") from None
    return values
