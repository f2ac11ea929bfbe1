"""The certificate of a comparison: what was compared, how far it agrees, and where it first does not."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from twostage import __version__
from twostage.parity.agreement import FLOAT32, Agreement, Spread, Tolerance
from twostage.parity.divergence import Divergence
from twostage.weights.file import sha256

FORMAT = 1


class Party(NamedTuple):
    """One side: its file, and what computed it."""

    file: Path
    computed_by: str


class Certificate(NamedTuple):
    """Two sides, the images (file, height, width), and how far the sides agree at each batch size.

    Where they do not: the first place where two detectors diverge, and what explains it, `explained_wholly` where with
    that nothing differs.
    """

    subject: Party
    oracle: Party
    images: Sequence[tuple[str, int, int]]
    agreement: Mapping[int, Agreement]
    tolerance: Tolerance = FLOAT32
    divergence: Divergence | None = None
    explained_by: Sequence[str] = ()
    explained_wholly: bool = False

    @property
    def passed(self) -> bool:
        """Whether the sides agree at every batch size, on images with detections."""
        every = self.agreement.values()
        return bool(every) and all(each.expected > 0 and each.same(self.tolerance) for each in every)

    def to_dict(self) -> dict[str, Any]:
        """What `certificate.json` holds."""
        return {
            "format": FORMAT,
            "passed": self.passed,
            "subject": _party(self.subject),
            "oracle": _party(self.oracle),
            "images": [
                {"file": Path(name).name, "height": h, "width": w, "sha256": sha256(Path(name))}
                for name, h, w in self.images
            ],
            "tolerance": self.tolerance._asdict(),
            "batches": [{"batch": batch, **_agreement(each)} for batch, each in self.agreement.items()],
            "first_divergence": self.divergence and self.divergence._asdict(),
            "explained_by": list(self.explained_by),
            "explained_wholly": self.explained_wholly,
            "versions": {
                "twostage": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def lines(self) -> list[str]:
        """The same to be read."""
        lines = [
            f"batch {batch}: {each.matched} of {each.expected} detections in {each.images} images"
            f"{f' ({each.at_the_edge} at the edge)' if each.at_the_edge else ''}, {each.found} found; "
            f"boxes differ by {_range(each.pixels)} px, scores by {_range(each.scores)}"
            f"{f', masks by {_range(each.masks)} of their pixels' if each.masks else ''}"
            for batch, each in self.agreement.items()
        ]
        if any(each.one_without_masks for each in self.agreement.values()):
            lines.append("Masks were not compared: one side has none.")
        if self.passed:
            return [*lines, "The same detections."]
        if self.divergence is not None:
            stage, place, difference = self.divergence
            lines.append(f"First different: {stage} ({place}), by {difference:.1e} of its largest value.")
        if not self.explained_by:
            return [*lines, "No convention explains the difference."]
        lines += [f"Explained by {text}" for text in self.explained_by]
        return [*lines, "With that nothing differs." if self.explained_wholly else "That explains a part of it."]


def _party(party: Party) -> dict[str, str]:
    return {"file": party.file.name, "sha256": sha256(party.file), "computed_by": party.computed_by}


def _agreement(each: Agreement) -> dict[str, Any]:
    values = each._asdict()
    for name in ("pixels", "scores", "masks"):
        values[name] = values[name] and values[name]._asdict()
    return values


def _range(spread: Spread) -> str:
    return f"{spread.largest:.1e} at most ({spread.median:.1e} in the median)"
