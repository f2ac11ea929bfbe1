"""Models of the zoo by name, as `Detector.build` makes them, and the values of their configurations."""

from typing import Any

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
