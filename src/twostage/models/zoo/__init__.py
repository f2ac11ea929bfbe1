"""The named detectors: each a plain function that puts parts together. Every field of `Fields` is a keyword.

A family is a module here; its functions are its names.
"""

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from twostage.errors import UsageError, nearest
from twostage.models.heads.cascade import Cascade
from twostage.models.heads.hybrid_task_cascade import HybridTaskCascade
from twostage.models.proposals.dense import DenseNetwork
from twostage.models.two_stage import TwoStage
from twostage.models.zoo import cascade_rcnn, fast_rcnn, faster_rcnn, hybrid_task_cascade, mask_rcnn, retinanet

FAMILIES: tuple[ModuleType, ...] = (faster_rcnn, fast_rcnn, mask_rcnn, cascade_rcnn, hybrid_task_cascade, retinanet)


def _named(family: ModuleType) -> dict[str, Callable[..., TwoStage]]:
    """The detectors of a family: the public functions that are defined there."""
    return {
        name: value
        for name, value in vars(family).items()
        if callable(value) and not name.startswith("_") and value.__module__ == family.__name__
    }


ZOO: dict[str, Callable[..., TwoStage]] = {name: make for family in FAMILIES for name, make in _named(family).items()}


def build(name: str, num_classes: int, **fields: Any) -> TwoStage:
    """The detector of that name for so many classes, with some fields changed.

    Raises UsageError for an unknown name, of which the nearest is shown, and for a field of another family.
    """
    model = rebuild(name, num_classes, fields)
    require_read(model, fields)
    return model


def rebuild(name: str, num_classes: int, fields: Mapping[str, Any]) -> TwoStage:
    """The same with the fields that a weights file holds, which are those of all families."""
    require_model(name)
    return ZOO[name](num_classes, **fields)


def require_read(model: TwoStage, names: Iterable[str]) -> None:
    """Raises UsageError for a field of another family, which this model would not read."""
    hybrid = isinstance(model.head, HybridTaskCascade)
    owners = {
        "mask": ("models with masks", model.second.knows_masks),
        "cascade": ("cascades", hybrid or isinstance(model.head, Cascade)),
        "htc": ("Hybrid Task Cascade", hybrid),
        "semantic": ("Hybrid Task Cascade", hybrid),
        "dense": ("RetinaNet", isinstance(model.rpn, DenseNetwork)),
    }
    for name in names:
        owner, read = owners.get(name.partition("_")[0], ("", True))
        if not read:
            raise UsageError(f"{name} is a field of {owner}, which this model would not read: leave it out")


def require_model(name: str) -> None:
    """Raises UsageError for what is no detector of the zoo; the nearest is shown."""
    if name not in ZOO:
        raise UsageError(f"There is no model {name!r}. {nearest(name, ZOO)}")
