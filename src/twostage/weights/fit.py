"""Putting tensors into a model: all of them, or those that fit."""

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from twostage.errors import DataError
from twostage.models.backbones.vgg import VGG16
from twostage.models.build import Model
from twostage.models.heads.bodies import Res5Head

SHOWN = 40  # tensors of each fault that a message names
_STAGE = re.compile(r".*?\d\.")  # a name up to its first number: layer1. or stages.2.
_BLOCK = re.compile(r"(.*?\d\.)(.*?\d+)\.")  # up to its second: layer1.0. or stages.2.1.


class Unfilled(TorchFunctionMode):
    """Within it models are built without random numbers, which take longer than reading the weights that replace them.

    What `load_all` does not fill must not be read.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Random fills do nothing."""
        kwargs = kwargs or {}
        if function in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def load_all(model: nn.Module, state: Mapping[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Load a state dict of which nothing may be missing, too much or of another shape.

    With `assign` the model takes the tensors themselves, without a copy. Batch counters are ignored: no prediction
    depends on them. Raises DataError that names what differs.
    """
    own = model.state_dict()
    given = {name: tensor for name, tensor in state.items() if name in own or not _is_counter(name)}
    missing = [name for name in own if name not in given and not _is_counter(name)]
    unknown = [name for name in given if name not in own]
    shapes = [
        f"{name} is {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    unknown = [*(_with_nearest(name, missing) for name in unknown[:SHOWN]), *unknown[SHOWN:]]
    faults = [
        f"they {fault} {', '.join(items[:SHOWN])}{f' and {len(items) - SHOWN} more' if len(items) > SHOWN else ''}"
        for fault, items in (("lack", missing), ("have unknown", unknown), ("differ:", shapes))
        if items
    ]
    if faults:
        raise DataError(
            f"{where}: these weights are not this model's: {'; '.join(faults)}. Check the model's name and its fields."
        )
    model.load_state_dict(given, strict=False, assign=assign)


def _with_nearest(name: str, missing: Sequence[str]) -> str:
    """An unknown tensor with the missing one whose name is most alike."""
    near = get_close_matches(name, missing, n=1, cutoff=0.8)
    return f"{name} (is it {near[0]}?)" if near else name


def load_fitting(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load the tensors whose name and shape fit; returns the names that were loaded, and the model's that were not."""
    own = model.state_dict()
    fitting = {name: t for name, t in state.items() if name in own and t.shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)
    return list(fitting), [name for name in own if name not in fitting and not _is_counter(name)]


def of_deeper_network(state: Mapping[str, Tensor], names: Collection[str]) -> list[str]:
    """The convolutions of a state dict for which a stage of the tensors with these names has no place: they are of a
    network with more layers, whose others would be loaded into the wrong places."""
    stages = tuple({found[0] for name in names if (found := _STAGE.match(name))})
    return [name for name, t in state.items() if t.ndim == 4 and name not in names and name.startswith(stages)]


def of_shallower_network(model: nn.Module, state: Mapping[str, Tensor], names: Collection[str]) -> list[str]:
    """The blocks of a model, of the tensors with these names, no convolution of which fits into a stage that others
    fit: the state dict is of another network, and random blocks would stand between its own."""
    own = model.state_dict()
    blocks: dict[str, dict[str, bool]] = {}
    for name in (name for name in own if name in names and own[name].ndim == 4):
        if found := _BLOCK.match(name):
            stage = blocks.setdefault(found[1], {})
            fits = name in state and state[name].shape == own[name].shape
            stage[found[0]] = stage.get(found[0], False) or fits
    return [
        block.removesuffix(".")
        for stage in blocks.values()
        for block, filled in stage.items()
        if not filled and any(stage.values())
    ]


def of_other_norm(model: nn.Module, state: Mapping[str, Tensor], names: Collection[str]) -> list[str]:
    """The normalisation layers, of those whose tensors have these names, that have running statistics in the state dict
    alone or in the model alone: scale and shift have the same names and shapes in batch and in group normalisation, and
    mean something else."""
    own = model.state_dict()
    layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight") and own[name].ndim == 1]
    statistics = [(layer, f"{layer}.running_mean") for layer in layers if f"{layer}.weight" in state]
    return sorted(layer for layer, name in statistics if (name in own) != (name in state))


def as_backbone(model: Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classification network's state dict (torchvision's names) under the names of this detector.

    VGG's two hidden layers become the head's, with their columns turned; ResNet's last stage becomes the C4 head's.
    What is named as the head's already stays so.
    """
    own = model.state_dict()
    places = ("backbone.", "backbone.body.", "backbone.level.body.")
    prefixes = (*places, *(f"{place}module." for place in places))  # the latter of networks from elsewhere
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in own for name in state))
    renamed = {name if name.startswith("head.") else prefix + name: tensor for name, tensor in state.items()}
    if isinstance(model.backbone, VGG16) and "classifier.0.weight" in state:
        renamed["head.body.fc6.weight"] = channel_last(state["classifier.0.weight"], 512)
        renamed["head.body.fc6.bias"] = state["classifier.0.bias"]
        renamed["head.body.fc7.weight"] = state["classifier.3.weight"]
        renamed["head.body.fc7.bias"] = state["classifier.3.bias"]
    for place, part in cast(nn.Module, model.head).named_modules(prefix="head"):
        if isinstance(part, Res5Head):
            renamed |= {f"{place}.{name}": t for name, t in state.items() if name.startswith("layer4.")}
    return renamed


def channel_last(weight: Float[Tensor, "d csS"], channels: int) -> Float[Tensor, "d sSc"]:
    """fc6's columns turned from (channel, row, column) to (row, column, channel)."""
    side = round((weight.shape[1] / channels) ** 0.5)
    return weight.unflatten(1, (channels, side, side)).permute(0, 2, 3, 1).flatten(1)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
