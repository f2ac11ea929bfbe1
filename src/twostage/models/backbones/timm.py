"""Networks of timm as backbones: `--backbone timm:NAME`, with the extra `timm`.

A network with maps of several strides gives those of stride 4 to 32. A plain vision transformer has maps of stride 16
only; the last becomes four (the simple feature pyramid of Li et al. 2022, "Exploring Plain Vision Transformer Backbones
for Object Detection", section 3).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from twostage.errors import MissingError, UsageError, nearest
from twostage.models.backbones.backbone import BackboneConfig
from twostage.models.backbones.provided import ProvidedBackbone

PREFIX = "timm:"
STRIDES = (4, 8, 16, 32)
_PATCH = 16  # pixels of a token: strides of 14, as DINOv2's, are no powers of two
_GROUPS = 4  # of a transformer's blocks, that `freeze` counts


@dataclass(frozen=True)
class TimmConfig(BackboneConfig):
    """A network of timm by its name there, which may have the tag of its weights: `convnext_tiny.fb_in1k`."""

    name: str

    def build(self) -> nn.Module:
        """Raises MissingError without timm, UsageError for a name that it does not have or a network that is unfit."""
        return ProvidedBackbone(TimmNetwork(self.name))


def pretrained_cfg(name: str) -> Any:
    """timm's description of the weights: mean, std, license. Raises as `TimmConfig.build`."""
    timm = _timm()
    network, _, tag = name.partition(".")
    if not timm.is_model(network):
        listed = ["those of timm.list_models()"]
        raise UsageError(
            f"timm {timm.__version__} has no network {network!r}. {nearest(network, timm.list_models(), listed)}"
        )
    if tag and not timm.list_pretrained(name):
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{network}.*")]
        raise UsageError(f"timm {timm.__version__} has no weights {tag!r} of {network}. {nearest(tag, tags)}")
    return timm.get_pretrained_cfg(name)


def licence_of(name: str) -> str:
    """The licence of the weights as timm states it; "" where it does not."""
    return str(pretrained_cfg(name).license or "")


class TimmNetwork(nn.Module):
    """A network with maps of strides 4 to 32, or those that it has of these; `channels` has one number per map.

    Its weights are random, timm's own (`pretrained`, from its hub), or those of a `file` of timm's tensors.
    """

    def __init__(self, name: str, *, pretrained: bool = False, file: Path | None = None) -> None:
        super().__init__()
        sizes, strides = _any_size(name)
        chosen = {stride: place for place, stride in enumerate(strides) if stride in STRIDES}
        overlay = {} if file is None else {"pretrained_cfg_overlay": {"file": str(file)}}
        self.net = _create(
            name, pretrained=pretrained or file is not None, out_indices=tuple(chosen.values()), **sizes, **overlay
        )
        self.nhwc = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        widths = tuple(self.net.feature_info.channels())
        self.pyramid = SimplePyramid(widths[-1]) if set(strides) == {_PATCH} else None
        self.strides = tuple(chosen) if self.pyramid is None else STRIDES
        self.channels = widths if self.pyramid is None else self.pyramid.channels
        self._require_fit(name)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """The maps, finest first."""
        maps = list(self.net(x))
        if self.nhwc:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        return maps if self.pyramid is None else self.pyramid(maps[-1])

    def get_stages(self) -> list[list[nn.Module]]:
        """What may be frozen, from the image on: up to each map, or four groups of a transformer's blocks."""
        return _stages(self.net, [info["module"] for info in self.net.feature_info.get_dicts()])

    @torch.no_grad()
    def _require_fit(self, name: str) -> None:
        """Raises UsageError for a network of one image size, or without maps for a pyramid."""
        if not self.channels:
            raise UsageError(f"backbone: timm's {name} has no maps of strides {STRIDES}: choose another network.")
        self.eval()
        try:
            self(torch.zeros(1, 3, 64, 96))
        except Exception as error:
            raise UsageError(
                f"backbone: timm's {name} does not take images of any size ({error}). Choose a convolutional network, "
                "a Swin or a plain vision transformer."
            ) from None
        self.train()


class SimplePyramid(nn.Module):
    """Four maps from one of stride 16: two of finer strides by transposed convolutions, itself, one by pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = max(1, width // 2), max(1, width // 4)
        self.finer = nn.ConvTranspose2d(width, half, 2, 2)
        self.finest = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2),
            _timm().layers.LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )
        self.channels = (quarter, half, width, width)

    def forward(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """The maps, finest first."""
        return [self.finest(x), self.finer(x), x, max_pool2d(x, 2, ceil_mode=True)]


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise MissingError("timm is not installed: pip install 'twostage[timm]' brings it.") from None
    return timm


def _create(name: str, **options: Any) -> Any:
    timm = _timm()
    with _errors_only(logging.getLogger("timm")):  # it warns of every tensor of a classifier, which is left out
        return timm.create_model(name, features_only=True, **options)


@contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _any_size(name: str) -> tuple[dict[str, Any], list[int]]:
    """The options by which a network takes images of any size, and the strides of all its maps with them.

    Transformers have such an option each; tokens become 16 pixels wide.
    """
    options: dict[str, Any] = {}
    with torch.device("meta"):  # only the structure is looked at
        if pretrained_cfg(name).fixed_input_size:
            for more in ({"dynamic_img_size": True}, {"strict_img_size": False}):
                try:
                    _create(name, **more)
                except TypeError:
                    continue  # it has another option, or none
                options = more
                break
        strides = _strides(_create(name, **options))
        if len(set(strides)) == 1 and strides[0] != _PATCH:
            with suppress(TypeError, AssertionError):  # of a network whose tokens are those of a convolutional one
                strides = _strides(_create(name, **options, patch_size=_PATCH))
                options["patch_size"] = _PATCH
    return options, strides


def _strides(net: Any) -> list[int]:
    return [one["reduction"] for one in net.feature_info.info]


def _stages(net: nn.Module, ends: Sequence[str]) -> list[list[nn.Module]]:
    """The modules of a network up to each that makes a map, and those in between; the rest goes to the last stage."""
    names, modules = zip(*_units(net), strict=True)
    if len(ends) == 1:  # a plain transformer
        blocks = [place for place, name in enumerate(names) if re.search(r"(^|_)blocks_\d+$", name)]
        cuts = [blocks[(k + 1) * len(blocks) // _GROUPS - 1] + 1 for k in range(_GROUPS)] if blocks else []
    else:
        ends = [end.replace(".", "_") for end in ends]
        cuts = [
            1 + max((place for place, name in enumerate(names) if f"{name}_".startswith(f"{end}_")), default=-1)
            for end in ends
        ]
        if 0 in cuts:  # a network whose maps are made elsewhere: one stage
            cuts = []
    bounds = [0, *cuts[:-1], len(names)]
    return [list(modules[first:last]) for first, last in pairwise(bounds)]


def _units(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of a network in their order, containers and wrappers opened, parameters of their own first."""
    own = list(module.parameters(recurse=False))
    if own:
        yield f"{name}_own", nn.ParameterList(own)
    for child_name, child in module.named_children():
        where = f"{name}_{child_name}" if name else child_name
        if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict) or child_name == "model":
            yield from _units(child, where)
        else:
            yield where, child
