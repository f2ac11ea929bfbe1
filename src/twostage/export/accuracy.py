"""What int8 costs on a data set, and which part of the network stays in float32 where it costs too much."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from twostage.data.dataset import Dataset
from twostage.detector import Detector
from twostage.parity.certificate import Quality

log = logging.getLogger("twostage.export")

_FIRST = 4  # layers next to the image, whose steps all others see
_BEGIN = {
    "the RPN": ("rpn",),
    "the heads": ("head",),
    "the pyramid": ("backbone.laterals", "backbone.outputs", "backbone.extra"),
}


def parts_of(layers: Sequence[str]) -> dict[str, list[str]]:
    """The parts of a network that can stay in float32, with their layers; `layers` are in the order of computation."""
    parts = {part: [layer for layer in layers if layer.startswith(begin)] for part, begin in _BEGIN.items()}
    parts["the first layers"] = list(layers[:_FIRST])
    return {part: inside for part, inside in parts.items() if inside}


class Score(NamedTuple):
    """AP of boxes, and of masks where there are any."""

    box: float
    mask: float | None

    def below(self, other: "Score") -> float:
        """How much lower it is than another score, in points of AP: of boxes or of masks, where it is more."""
        loss = other.box - self.box
        return 100 * (loss if self.mask is None or other.mask is None else max(loss, other.mask - self.mask))


def score_of(detector: Detector, dataset: Dataset) -> Score:
    """AP on a data set."""
    report = detector.evaluate(dataset).to_dict()
    masks = report.get("segm")
    return Score(report["metrics"]["AP"], masks and masks["metrics"]["AP"])


def with_float_parts(
    build: Callable[[Sequence[str]], Detector],
    names: Sequence[str],
    dataset: Dataset,
    before: Score,
    allowed: float,
) -> Quality:
    """The quality of the first of these that costs at most `allowed` points of AP.

    Everything in int8; then with the part in float32 that gains most; then with two parts, and so on. `build` is called
    last for the one that is taken. `names` are those of the quantised layers.
    """
    parts = parts_of(names)
    kept: tuple[str, ...] = ()
    built: tuple[str, ...] = ()
    best = score_of(build(()), dataset)
    log.info("int8: AP %.4f, before %.4f", best.box, before.box)
    while best.below(before) > allowed and len(kept) < len(parts):
        tried = {}
        for part in parts:
            if part not in kept:
                built = (*kept, part)
                tried[part] = score_of(build(_layers(parts, built)), dataset)
                log.info("with %s in float32: AP %.4f", " and ".join(built), tried[part].box)
        part = min(tried, key=lambda name: tried[name].below(before))
        if tried[part].below(before) >= best.below(before):
            break
        kept, best = (*kept, part), tried[part]
    if built != kept:
        build(_layers(parts, kept))
    return Quality(dataset.root.name, len(dataset), before.box, best.box, before.mask, best.mask, kept, allowed)


def _layers(parts: Mapping[str, Sequence[str]], kept: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(layer for part in kept for layer in parts[part]))
