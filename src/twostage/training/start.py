"""What a run begins from: random weights, a detector of ours, or a classification network's weights."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twostage.data.stuff import Stuff
from twostage.device import choose_device
from twostage.errors import DataError
from twostage.models.backbones.norm import FrozenBatchNorm
from twostage.models.fields import require_known
from twostage.models.two_stage import TwoStage
from twostage.models.zoo import build, rebuild, require_model, require_read
from twostage.training.folder import RunFolder
from twostage.training.options import TrainOptions
from twostage.weights.file import KEY, Card, load_tensors, load_weights, read_card
from twostage.weights.fit import Unfilled, as_backbone, load_fitting
from twostage.weights.named import find_weights

log = logging.getLogger("twostage.training")

_OF_CLASSES = re.compile(r"(head\.(.*\.)?(classes|deltas)|rpn\.classes)\.")  # whatever parts a head is made of


class Start(NamedTuple):
    """A model, and which of its tensors came from a file."""

    model: TwoStage
    loaded: frozenset[str]


def require_start(options: TrainOptions) -> None:
    """What can be known of model, fields, weights and device before a data set is read; weights by name are fetched.

    Raises UsageError and MissingError as building and loading will.
    """
    require_model(options.model)
    require_known(options.model_fields)
    choose_device(options.device)
    if options.weights is not None:
        find_weights(options.weights, offline=options.offline)


def starting_model(
    options: TrainOptions, names: tuple[str, ...], stuff: Callable[[], Stuff | None] = lambda: None
) -> Start:
    """The model as the first step finds it; of a resumed run its shape alone, since its state holds the weights.

    A detector of ours passes on its fields as well as its weights. Raises as `weights.file.load_weights`, DataError
    when no weight fits, and UsageError for a wrong model or field.
    """
    sizes = {"size": options.size, "max_size": options.max_size}
    given: dict[str, Any] = {
        **options.model_fields,
        **{name: value for name, value in sizes.items() if value is not None},
    }
    given |= _of_stuff(options.model, len(names), given, stuff)
    torch.manual_seed(options.seed)
    if options.resume is not None:
        last = RunFolder.existing(options.resume).last
        card, _ = load_weights(last)
        if card.names != names:
            raise DataError(
                f"{last}: the run learns {', '.join(card.names)}; the data set has {', '.join(names)}. "
                "Bring the data back, or begin a new run with --weights."
            )
        return Start(rebuild(card.model, len(names), card.fields), frozenset())
    if options.weights is not None:
        return _from_weights(find_weights(options.weights, offline=options.offline), options.model, names, given)
    model = build(options.model, len(names), **given)
    if model.fields.recipe != "scratch":
        log.warning(
            "%s begins from random weights, and is made to begin from pretrained ones (--weights). "
            "faster_rcnn_tiny_fpn learns from scratch.",
            options.model,
        )
    if "norm" not in given and any(isinstance(module, FrozenBatchNorm) for module in model.modules()):
        # Statistics that nobody measured cannot stay frozen: activations fade or burst. Groups need no large batch
        # (He et al. 2019, "Rethinking ImageNet Pre-training", section 3.1).
        log.info("Group normalisation takes the place of frozen statistics; --set model.norm=batch for another.")
        torch.manual_seed(options.seed)
        model = build(options.model, len(names), **given, norm="group")
    return Start(model, frozenset())


def _of_stuff(name: str, classes: int, given: Mapping[str, Any], stuff: Callable[[], Stuff | None]) -> dict[str, int]:
    """How many classes of stuff a model that asks the data is to tell apart; nobody else looks for maps."""
    with Unfilled():
        asks = build(name, classes, **given).fields.semantic_classes == "data"
    if not asks:
        return {}
    maps = stuff()
    if maps is None:
        log.info("The data set has no maps of stuff: the model learns without its semantic branch.")
    return {"semantic_classes": 0 if maps is None else maps.classes}


def _from_weights(path: Path, name: str, names: tuple[str, ...], given: Mapping[str, object]) -> Start:
    """Load what fits, and say what does not; a detector of other classes keeps all but its last layers."""
    metadata, state = load_tensors(path)
    card = read_card(path, metadata[KEY]) if KEY in metadata else None
    if card is not None and card.model != name:
        log.warning(
            "%s is a %s: of it %s takes what fits. Did you mean --model %s?", path, card.model, name, card.model
        )
    fields = card.fields_with(given) if card is not None and card.model == name else given
    model = rebuild(name, len(names), fields)
    require_read(model, given)
    state = as_backbone(model, state) if card is None else _of_same_classes(state, card, names, path)
    loaded, fresh = load_fitting(model, state)
    if not loaded:
        made_for = "the model it was made for" if card is None else card.model
        raise DataError(
            f"{path}: none of its {len(state)} tensors fits {name}. Choose {made_for} by --model, or other weights."
        )
    log.info("%s: %d tensors loaded", path, len(loaded))
    if fresh:
        log.info("Begin from random values: %s", ", ".join(_grouped(fresh)))
    return Start(model, frozenset(loaded))


def _of_same_classes(state: dict[str, Tensor], card: Card, names: tuple[str, ...], path: Path) -> dict[str, Tensor]:
    if card.names == names:
        return state
    log.warning(
        "%s knows the classes %s, the data set has %s: the layers that tell classes apart begin anew.",
        *(path, ", ".join(card.names), ", ".join(names)),
    )
    return {name: t for name, t in state.items() if not _OF_CLASSES.match(name)}


def _grouped(names: list[str]) -> list[str]:
    """`head.classes` for its weight and its bias."""
    return list(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))
