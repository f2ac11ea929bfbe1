"""A backbone that a user provides: any module that maps images to feature maps and has `channels` and `strides`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twostage.errors import UsageError
from twostage.models.backbones.backbone import BackboneConfig


@dataclass(frozen=True)
class ProvidedConfig(BackboneConfig):
    """What is saved of such a backbone: to load the weights again, the same module is given again."""

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def build(self) -> nn.Module:
        """Raises UsageError: the module itself is not saved."""
        raise UsageError(
            f"This model was built with its own backbone, {self.name}, whose code is not in the file: load it "
            "in Python with Detector.load(..., backbone=module), or train(..., backbone=module)."
        )


class ProvidedBackbone(nn.Module):
    """The module, and the channels and strides of its maps, finest first; each stride is twice the one before.

    The module returns a tensor, a sequence of tensors, or a dictionary of them, as torchvision's
    `create_feature_extractor` makes. A method `get_stages() -> list[list[nn.Module]]`, from the input on, lets `freeze`
    count its stages; without it the module is one. Raises UsageError for missing or wrong `channels` or `strides`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.channels, self.strides = (_numbers(module, name) for name in ("channels", "strides"))
        # The level that a region is pooled from (`assign_levels`) and a pyramid's further levels rest on the doubling.
        doubled = tuple(self.strides[0] << k for k in range(len(self.channels)))
        if self.strides != doubled:
            raise UsageError(
                f"backbone: {type(module).__name__} has channels {self.channels} and strides {self.strides}: give one "
                "of each per map, the finest map (the smallest stride) first, each stride twice the one before."
            )

    @property
    def config(self) -> ProvidedConfig:
        """What is saved of it."""
        return ProvidedConfig(type(self.module).__name__, self.channels, self.strides)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        """The maps, finest first. Raises UsageError where they do not have the channels and strides of the module."""
        out = self.module(x)
        maps = (out,) if isinstance(out, Tensor) else tuple(out.values() if isinstance(out, Mapping) else out)
        shapes = [tuple(m.shape) for m in maps]
        if tuple(shape[1] for shape in shapes) != self.channels:
            raise UsageError(f"backbone: {self.config.name} has channels {self.channels} and returns maps of {shapes}.")
        # Padding may add or remove a border cell. In an exported program sizes are symbols, which no check may fix.
        if not torch.compiler.is_compiling() and not all(
            abs(cells - pixels / stride) < 2
            for shape, stride in zip(shapes, self.strides, strict=True)
            for cells, pixels in zip(shape[2:], x.shape[2:], strict=True)
        ):
            raise UsageError(
                f"backbone: {self.config.name} has strides {self.strides} and returns maps of {shapes} for images of "
                f"{tuple(x.shape)}: give as strides how many pixels a cell of each map is wide."
            )
        return maps

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen: the module's own stages, or the whole module as one."""
        own = getattr(self.module, "get_stages", None)
        return cast(list[list[nn.Module]], own()) if own is not None else [[self.module]]


def _numbers(module: nn.Module, name: str) -> tuple[int, ...]:
    value: Any = getattr(module, name, None)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, int) and v > 0 for v in value):
        raise UsageError(
            f"backbone: {type(module).__name__}.{name} is {value!r}: give a tuple of whole numbers, one per map that "
            "the module returns, the finest first."
        )
    return tuple(value)
