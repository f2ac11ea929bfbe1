"""What a run begins from: a detector of ours, or a classification network's weights for the backbone."""

import logging
from pathlib import Path

from twostage.errors import DataError
from twostage.models.two_stage import TwoStage
from twostage.weights.file import KEY, load_tensors, read_card
from twostage.weights.fit import as_backbone, load_fitting

log = logging.getLogger("twostage.training")


def load_start(model: TwoStage, path: Path, names: tuple[str, ...]) -> None:
    """Load what fits, and say what does not.

    A detector of other classes keeps all but its last layers. Raises DataError when nothing fits, and as
    `weights.file.load_weights`.
    """
    metadata, state = load_tensors(path)
    if KEY in metadata:
        card = read_card(path, metadata[KEY])
        if card.names != names:
            log.warning(
                "%s knows the classes %s, the data set has %s: the layers that tell classes apart begin anew.",
                *(path, ", ".join(card.names), ", ".join(names)),
            )
            state = {name: t for name, t in state.items() if not name.startswith(("head.classes.", "head.deltas."))}
    else:
        state = as_backbone(model, state)
    loaded, fresh = load_fitting(model, state)
    if not loaded:
        raise DataError(
            f"{path}: none of its {len(state)} tensors fits this model. "
            "Choose the model it was made for by --model, or other weights."
        )
    log.info("%s: %d tensors loaded", path, len(loaded))
    if fresh:
        log.info("Begin from random values: %s", ", ".join(_grouped(fresh)))


def _grouped(names: list[str]) -> list[str]:
    """`head.classes` for its weight and its bias."""
    return list(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))
