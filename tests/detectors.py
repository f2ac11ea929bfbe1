"""Models of the zoo by name, as `Detector.build` makes them."""

from typing import Any

from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.models.zoo import named


def make_model(name: str, num_classes: int, **fields: Any) -> Model:
    """The model of that name with some values of its configuration replaced."""
    return build(configure(named(name), fields), num_classes)
