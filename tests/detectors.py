"""Models of the zoo by name, as `Detector.build` makes them, and the values of their configurations."""

from typing import Any

import torch
from torch import nn

from twostage.data.scenes import NAMES
from twostage.detector import Detector
from twostage.models.build import Model, build
from twostage.models.component import leaves
from twostage.models.config import DetectorConfig
from twostage.models.configure import configure, names_of
from twostage.models.zoo import named


def make_model(name: str, num_classes: int, **fields: Any) -> Model:
    """The model of that name with some values of its configuration replaced."""
    return build(configure(named(name), fields), num_classes)


def values_of(config: DetectorConfig) -> dict[str, Any]:
    """Every value of a configuration by each of its names."""
    return {name: leaf.value for leaf in leaves(config) for name in leaf.names}


def fields_of(name: str, **fields: Any) -> dict[str, Any]:
    """Those of the fields that the model of that name has."""
    known = names_of(named(name))
    return {field: value for field, value in fields.items() if field in known}


SMALL = {"size": 96, "max_size": 160, "rpn_top_test": 100, "rpn_keep_test": 40, "head_channels": 64, "max_det": 20}


def lively(name: str, **fields: object) -> Detector:
    """A detector whose scores and boxes differ from each other, with few proposals; it lacks some of the fields."""
    torch.manual_seed(0)
    detector = Detector.build(name, NAMES, device="cpu", **fields_of(name, **(SMALL | fields)))
    generator = torch.Generator().manual_seed(1)
    parts = [part for part in (getattr(detector.model, "rpn", None), detector.model.head) if part is not None]
    with torch.no_grad():
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5, generator=generator)
        for name, module in detector.model.head.named_modules():
            if name.endswith("classes") and isinstance(
                module, nn.Linear
            ):  # of features above 0: else one class would be the best everywhere
                module.weight.sub_(module.weight.mean(dim=1, keepdim=True))
    return detector
