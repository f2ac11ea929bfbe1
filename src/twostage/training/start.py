"""The initial model of a run: random weights, a detector of ours, or a classification network's weights."""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twostage.data.stuff import Stuff
from twostage.device import choose_device
from twostage.errors import DataError, MissingError, UsageError
from twostage.models.backbones.efficientnet_lite import EfficientNetLiteConfig
from twostage.models.backbones.norm import FrozenBatchNorm
from twostage.models.backbones.timm import TimmConfig, licence_of
from twostage.models.build import Model, build, with_backbone
from twostage.models.component import leaves
from twostage.models.config import DetectorConfig, StagewiseConfig, TwoStageConfig
from twostage.models.configure import configure
from twostage.models.stagewise import NOT_TRAINED
from twostage.models.zoo import named
from twostage.training.folder import RunFolder
from twostage.training.optimiser import stage_tensors
from twostage.training.options import RANDOM, TrainOptions
from twostage.training.recipe import recipe_name
from twostage.weights.classes import with_class_rows, with_class_weights
from twostage.weights.file import KEY, OF_DATA, Card, load_tensors, load_weights, read_card, require_weights
from twostage.weights.fit import as_backbone, load_fitting, of_deeper_network, of_other_norm, of_shallower_network
from twostage.weights.named import find_weights
from twostage.weights.published import PUBLISHED
from twostage.weights.publishers.packages import lite_weights
from twostage.weights.timm import timm_tensors

log = logging.getLogger("twostage.training")

_NORM = {"norm", "backbone.norm.kind", "backbone_norm_kind"}  # the names of a backbone's kind of normalisation

_NETWORK = ("depth", "variant", "name")  # the fields of a backbone that say which network it is
_MAPS = ("first", "last", "dilated", "single")  # and those of the maps that a model takes from it


class Start(NamedTuple):
    """A model, the names of its tensors that came from a file, those of them in which the rows of some classes are
    random, and the licence of what is trained from it."""

    model: Model
    loaded: frozenset[str] = frozenset()
    partly: frozenset[str] = frozenset()
    licence: str = OF_DATA


def with_default_weights(options: TrainOptions, backbone: nn.Module | None = None) -> TrainOptions:
    """The options with ImageNet weights where none are given and a Python package has those of the model's backbone.

    Raises MissingError where it is not installed.
    """
    if options.weights is not None or backbone is not None:
        return options
    if options.backbone is not None:
        return replace(options, weights=options.backbone)
    network = configure(named(options.model), options.given_fields).backbone
    if not isinstance(network, EfficientNetLiteConfig):
        return options
    name = lite_weights(network.variant)
    try:
        find_weights(name)
    except MissingError as error:
        others = [
            f"begin from random weights: --weights {RANDOM}, or --model {_with_net('tiny', options.model)}, "
            "which is made for that"
        ]
        if network.variant != getattr(named(options.model).backbone, "variant", None):
            others.insert(0, "leave out model.backbone.variant")
        elif network.variant != 0:
            others.insert(0, f"--model {_with_net('lite0', options.model)}, whose weights twostage[pretrained] brings")
        raise MissingError(f"{error} (or {'; or '.join(others)})") from None
    return replace(options, weights=name)


def require_start(options: TrainOptions) -> None:
    """Check model, fields, weights and device before a data set is read; published weights are fetched.

    Raises UsageError and MissingError as building and loading will.
    """
    if options.freeze is not None and "backbone" not in options.learn:
        raise UsageError("freeze counts stages of the backbone, and none of it is learned: leave it out.")
    config = with_backbone(named(options.model), options.backbone)
    if isinstance(configure(config, options.given_fields), StagewiseConfig):
        raise UsageError(f"model is {options.model}. {NOT_TRAINED}")
    choose_device(options.device)
    if options.initial_weights is not None:
        require_weights(find_weights(options.initial_weights, offline=options.offline))


def starting_model(
    options: TrainOptions,
    names: tuple[str, ...],
    stuff: Callable[[], Stuff | None] = lambda: None,
    backbone: nn.Module | None = None,
) -> Start:
    """The model before the first step; that of a resumed run has no weights yet, since its state holds them.

    A detector of ours passes on its configuration as well as its weights. Raises as `weights.file.load_weights`,
    DataError when no weight fits, and UsageError for a wrong model or field.
    """
    given = options.given_fields
    torch.manual_seed(options.seed)
    if options.resume is not None:
        last = RunFolder.existing(options.resume).last
        card, _ = load_weights(last)
        if card.names != names:
            raise DataError(
                f"{last}: the run has the classes {', '.join(card.names)}; the data set has {', '.join(names)}. "
                "Restore the data, or begin a new run with --weights."
            )
        return Start(build(card.config, len(names), backbone), licence=card.licence)
    if options.initial_weights is not None:
        path = find_weights(options.initial_weights, offline=options.offline)
        return _from_weights(path, options, names, stuff, backbone)
    config = with_backbone(named(options.model), options.backbone if backbone is None else backbone)
    config = _with_stuff(configure(config, given), stuff)
    if recipe_name(options) != "scratch" and backbone is None:
        log.warning(
            "%s is trained from random weights, and is made for pretrained ones (--weights). "
            "faster_rcnn_tiny_fpn learns from scratch.",
            options.model,
        )
    frozen = any(leaf.path.endswith("norm.kind") and leaf.value == "frozen" for leaf in leaves(config))
    if frozen and not _NORM & set(given):
        # Statistics that were never measured cannot stay frozen: activations vanish or explode. GroupNorm needs no
        # large batch (He et al. 2019, "Rethinking ImageNet Pre-training", section 3.1).
        log.info("GroupNorm replaces frozen statistics; --set model.norm=batch for another.")
        config = configure(config, {"norm": "group"})
    licence = OF_DATA if backbone is None else f"{OF_DATA}, and that of the weights of {type(backbone).__name__}"
    return Start(build(config, len(names), backbone), licence=licence)


def _with_net(network: str, model: str) -> str:
    """The model of the same family with another small network."""
    return re.sub(r"_lite\d", f"_{network}", model)


def _with_stuff(config: DetectorConfig, stuff: Callable[[], Stuff | None]) -> DetectorConfig:
    """The configuration with the data set's number of stuff classes where it is to be taken from the data."""
    if not isinstance(config, TwoStageConfig) or config.semantic is None or config.semantic.classes != "data":
        return config
    maps = stuff()
    if maps is None:
        log.info("The data set has no stuff maps: the model is trained without its semantic branch.")
    return replace(config, semantic=replace(config.semantic, classes=0 if maps is None else maps.classes))


def _from_weights(
    path: Path,
    options: TrainOptions,
    names: tuple[str, ...],
    stuff: Callable[[], Stuff | None],
    backbone: nn.Module | None,
) -> Start:
    """Load the tensors that fit; a detector of other classes keeps the rows of those in common, another model's the
    layers of a backbone that both have."""
    name, given = options.model, options.given_fields
    metadata, state = load_tensors(path)
    card = read_card(path, metadata[KEY]) if KEY in metadata else None
    if card is not None and card.model != name:
        log.warning(
            "%s is a %s: %s takes the tensors that fit. Did you mean --model %s?", path, card.model, name, card.model
        )
    config = named(name)
    if card is not None:
        same = card.model == name
        config = with_class_weights(card.config, card.names, names) if same else _with_layers_of(card.config, config)
    config = configure(with_backbone(config, options.backbone if backbone is None else backbone), given)
    model = build(_with_data_classes(config, given, stuff), len(names), backbone)
    if card is None and isinstance(config.backbone, TimmConfig) and not next(iter(state)).startswith("net."):
        state = timm_tensors(config.backbone.name, path)
    partly: frozenset[str] = frozenset()
    if card is not None:
        state, partly = _of_classes(model, state, card, names, path)
    else:
        state = as_backbone(model, state)
    _require_same_network(model, state, card, options, path)
    loaded, _ = load_fitting(model, state)
    if not loaded:
        made_for = "the model it was made for" if card is None else card.model
        raise DataError(
            f"{path}: none of its {len(state)} tensors fits {name}. Choose {made_for} by --model, or other weights."
        )
    if card is not None and backbone is None and not any(stage & set(loaded) for stage in stage_tensors(model)):
        # The recipe, and frozen statistics, would be those of a pretrained backbone.
        mend = f"Choose {card.model} by --model" if options.backbone is None else "Leave out --backbone"
        raise DataError(
            f"{path}: none of its tensors fits the backbone of {options.backbone or name}, which would be random. "
            f"{mend}, or give other weights."
        )
    return Start(model, frozenset(loaded), partly, _licence(options, card, config))


def _require_same_network(
    model: Model, state: Mapping[str, Tensor], card: Card | None, options: TrainOptions, path: Path
) -> None:
    """Raises DataError where some of the backbone's tensors fit and it is another network nevertheless, UsageError
    where its normalisation is of another kind; but that of a batch is allowed, whose statistics are measured anew.
    """
    name, own, stages = options.model, model.state_dict(), set().union(*stage_tensors(model))
    if not any(one in state and state[one].shape == own[one].shape for one in stages):
        return
    made_for = "the model that fits" if card is None else f"{card.model} by --model"
    # A detector's heads may have any number of layers; of a network for classification, they have the last stage.
    if deeper := of_deeper_network(state, own if card is None else stages):
        raise DataError(
            f"{path}: its network has more layers than that of {name}, which has no place for {len(deeper)} of its "
            f"convolutions ({deeper[0]}). Choose {made_for}, or other weights."
        )
    if other := of_shallower_network(model, state, stages):
        raise DataError(
            f"{path}: its network is another than that of {name}, of which some blocks would be random between others "
            f"that are not ({other[0]} the first of {len(other)}). Choose {made_for}, or other weights."
        )
    if norms := _unlike_norms(model, state, card, stages):
        raise UsageError(
            f"{path}: its network has {norms[0]} normalisation, and the model {norms[1]}, for which the scales and "
            f"shifts of the file were not learned. Change model.norm, or begin from random weights: --weights {RANDOM}"
        )


def _unlike_norms(
    model: Model, state: Mapping[str, Tensor], card: Card | None, stages: Collection[str]
) -> tuple[str, str] | None:
    """The kinds of normalisation of a file and of a model's backbone, where tensors of the same names do not suit."""
    if unlike := of_other_norm(model, state, stages):
        if f"{unlike[0]}.running_mean" in state:
            return "batch", "another"
        frozen = isinstance(model.get_submodule(unlike[0]), FrozenBatchNorm)
        return ("another", "frozen batch normalisation") if frozen else None
    if card is None or type(card.config.backbone) is not type(model.config.backbone):
        return None
    kinds = [getattr(getattr(config.backbone, "norm", None), "kind", "") for config in (card.config, model.config)]
    return (kinds[0], kinds[1]) if set(kinds) == {"group", "layer"} else None


def _with_layers_of(given: DetectorConfig, config: DetectorConfig) -> DetectorConfig:
    """The configuration with what the layers of the backbone compute, and the pixels that they read, as in another one.

    Where both have the same network its tensors fit, and are those of its normalisation, strides, mean and deviation.
    """
    own, theirs = config.backbone, given.backbone
    if type(own) is not type(theirs) or any(getattr(own, f, None) != getattr(theirs, f, None) for f in _NETWORK):
        return config
    maps = {name: getattr(own, name) for name in _MAPS if hasattr(own, name)}
    image = replace(config.image, mean=given.image.mean, std=given.image.std)
    return replace(config, backbone=replace(theirs, **maps), image=image)  # type: ignore[arg-type]


def _licence(options: TrainOptions, card: Card | None, config: DetectorConfig) -> str:
    """That of weights trained from those of the options: of a detector of ours it is inherited."""
    name, licence = str(options.weights), ""
    if name in PUBLISHED:
        licence = PUBLISHED[name].licence
    elif card is not None:
        return card.licence
    elif isinstance(config.backbone, TimmConfig):
        name = f"timm's {config.backbone.name}"
        licence = licence_of(config.backbone.name)
    return f"{OF_DATA}, and {licence} of {name}" if licence else OF_DATA


def _with_data_classes(
    config: DetectorConfig, given: Mapping[str, Any], stuff: Callable[[], Stuff | None]
) -> DetectorConfig:
    """The stuff classes of the data set for every Hybrid Task Cascade whose options do not give them."""
    if not isinstance(config, TwoStageConfig) or config.semantic is None:
        return config
    if {"semantic_classes", "semantic.classes"} & set(given):
        return config
    return _with_stuff(replace(config, semantic=replace(config.semantic, classes="data")), stuff)


def _of_classes(
    model: Model, state: dict[str, Tensor], card: Card, names: tuple[str, ...], path: Path
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The state dict with the rows of the data set's classes, where those of the file are others; and which of its
    tensors have random rows.
    """
    if card.names == names:
        return state, frozenset()
    kept = [name for name in names if name in card.names]
    fresh = [name for name in names if name not in card.names]
    left = [name for name in card.names if name not in names]
    alike = {name.casefold() for name in fresh} & {name.casefold() for name in left}
    log.warning(
        "%s has other classes than the data set. In both: %s; new: %s; left out: %s.%s%s",
        *(path, *(", ".join(some) or "none" for some in (kept, fresh, left))),
        " Rows of those in both are kept where the head is loaded (see the table)." if kept else "",
        " Upper and lower case count." if alike else "",
    )
    return with_class_rows(model, state, card.names, names)
