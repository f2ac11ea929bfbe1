"""What a run begins with, part by part: how many tensors were loaded, what is trained, which layers
are re-initialised."""

import logging
from collections.abc import Collection
from itertools import groupby
from typing import NamedTuple

from torch import Tensor, nn

from twostage.models.backbones.provided import ProvidedConfig
from twostage.models.build import Model
from twostage.models.one_stage import OneStage
from twostage.training.folder import started_from
from twostage.training.optimiser import backbone_stages
from twostage.training.recipe import recipe_name
from twostage.training.start import Start
from twostage.training.step import Session

log = logging.getLogger("twostage.training")

_NAMED = 3  # layers of a part that are named


class _Part(NamedTuple):
    """A stage of the backbone, by its number from 1, or another part, by its name; its tensors by name."""

    stage: int
    name: str
    tensors: dict[str, Tensor]

    def cells(self, loaded: Collection[str], partly: Collection[str]) -> tuple[str, str, str]:
        """How many tensors were loaded, whether they are trained, and which layers are re-initialised."""
        fresh = [name for name in self.tensors if name not in loaded]
        rows = [f"{_layer(name)} (rows of new classes)" for name in self.tensors if name in partly]
        layers = list(dict.fromkeys([*map(_layer, fresh), *rows]))
        named = ", ".join(layers[:_NAMED]) + (f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else "")
        trained = {t.requires_grad for t in self.tensors.values() if isinstance(t, nn.Parameter)}
        word = "yes" if trained == {True} else "partly" if True in trained else "frozen"
        whole = len(fresh) == len(self.tensors)
        return f"{len(self.tensors) - len(fresh)} of {len(self.tensors)}", word, "all" if whole else named or "none"


def log_start(session: Session, start: Start) -> None:
    """What a run begins with, and what is fixed that should not be."""
    options, recipe = session.options, session.recipe
    log.info(
        "%s%s from %s, recipe %s: %s, learning rate %g, %d images per step",
        *(options.model, f" with {options.backbone}" if options.backbone else ""),
        *(options.initial_weights or started_from(session), recipe_name(options)),
        *(recipe.optimizer, recipe.lr, recipe.batch),
    )
    if start.loaded:
        log.info("%s\n%s", options.weights, starting_table(session.model, start.loaded, start.partly))
    if random := _random_and_frozen(session, start):
        log.warning(
            "Frozen layers of the backbone with random weights, which stay random: %d (%s the first). Leave out "
            "--freeze, learn the backbone too, or begin from weights.",
            *(len(random), random[0]),
        )
    own = None if isinstance(session.model, OneStage) else session.model.rpn
    if options.proposals is not None and own is not None and "rpn" not in options.learn:
        log.info("The model's own RPN is not trained here: to predict, it must have been trained before.")


def _random_and_frozen(session: Session, start: Start) -> list[str]:
    """The frozen layers of the backbone, its pyramid among them, that were not loaded. A module that a Python caller
    gave has its own weights, and those of a resumed run are in its state."""
    if session.options.resume is not None:
        return []
    given = isinstance(session.model.config.backbone, ProvidedConfig)
    return list(
        dict.fromkeys(
            f"backbone.{_layer(name)}"
            for name, parameter in session.model.backbone.named_parameters()
            if not parameter.requires_grad
            and f"backbone.{name}" not in start.loaded
            and not (given and "module." in name)
        )
    )


def starting_table(model: Model, loaded: Collection[str], partly: Collection[str] = ()) -> str:
    """One line per part; neighbouring stages of the backbone that are alike share one.

    `loaded` are the names of the tensors that came from a file, `partly` those of them in which the rows of some
    classes are random.
    """
    lines = [("part", "loaded", "trained", "re-initialised")]
    for _, group in groupby(_parts(model), key=lambda part: (part.stage > 0, part.cells(loaded, partly)[1])):
        alike = list(group)
        if alike[0].stage:
            first, last = alike[0].stage, alike[-1].stage
            whole = _Part(first, "", {name: t for part in alike for name, t in part.tensors.items()})
            name = f"backbone, stage {first}" if first == last else f"backbone, stages {first} to {last}"
            lines.append((name, *whole.cells(loaded, partly)))
        else:
            lines += [(part.name, *part.cells(loaded, partly)) for part in alike]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _layer(name: str) -> str:
    """The layer of a tensor."""
    return name.rpartition(".")[0]


def _parts(model: Model) -> list[_Part]:
    stage_of = {
        id(tensor): number
        for number, stage in enumerate(backbone_stages(model), 1)
        for module in stage
        for tensor in (*module.parameters(), *module.buffers())
    }
    parts: dict[tuple[int, str], _Part] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue  # a counter of batches, which nothing reads
        stage = stage_of.get(id(tensor), 0)
        owner = name.partition(".")[0]
        key = stage, "" if stage else "pyramid" if owner == "backbone" else owner
        parts.setdefault(key, _Part(*key, {})).tensors[name] = tensor
    return list(parts.values())
