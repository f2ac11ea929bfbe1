"""What a backbone is: a network with the channels and strides of its maps, and a configuration that builds it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


class Backbone(Protocol):
    """A network that returns one or several maps, finest first."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]: ...

    def get_stages(self) -> list[list[nn.Module]]:
        """What `freeze` counts, from the input on."""
        ...


@dataclass(frozen=True)
class BackboneConfig(ABC):
    """The base of every backbone's configuration, which stands beside its network."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, a `Backbone`, with random weights."""

    def with_single_map(self) -> "BackboneConfig":
        """The same network up to its map of stride 16 alone, for `PyramidConfig.kind` "single" and "image"."""
        return self
