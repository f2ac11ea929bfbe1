"""The certificate of a comparison: what was compared, how far it agrees, and where it first does not."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from twostage import __version__
from twostage.parity.agreement import FLOAT32, Agreement, Spread, Tolerance
from twostage.parity.divergence import Divergence
from twostage.parity.variants import Pixels
from twostage.weights.file import sha256

FORMAT = 1


class Party(NamedTuple):
    """One side: its file, and what computed it."""

    file: Path
    computed_by: str


class Compared(NamedTuple):
    """An image: its file name, or what it was made from, its size, and the hash of the file or of its pixels."""

    name: str
    height: int
    width: int
    sha256: str

    @classmethod
    def of_file(cls, file: Path, image: Pixels) -> "Compared":
        """A photo."""
        return cls(file.name, image.shape[0], image.shape[1], sha256(file))

    @classmethod
    def of_pixels(cls, name: str, image: Pixels) -> "Compared":
        """An image that was made for the comparison."""
        return cls(name, image.shape[0], image.shape[1], hashlib.sha256(image.tobytes()).hexdigest())


class Quality(NamedTuple):
    """AP on a data set before and after, of boxes and of masks, and how many points of it (of 100) may be lost.

    `float_parts` of the network were left in float32.
    """

    data: str
    images: int
    before: float
    after: float
    masks_before: float | None
    masks_after: float | None
    float_parts: Sequence[str]
    allowed: float

    @property
    def lost(self) -> float:
        """Points of AP, of boxes or of masks, where it is more."""
        masks = 0.0 if self.masks_before is None or self.masks_after is None else self.masks_before - self.masks_after
        return 100 * max(self.before - self.after, masks)

    @property
    def passed(self) -> bool:
        """Whether no more is lost than may be, of an AP that is above 0."""
        return self.before > 0 and self.lost <= self.allowed

    def line(self) -> str:
        """The same to be read."""
        masks = "" if self.masks_before is None else f", of masks {self.masks_before:.4f} and {self.masks_after:.4f}"
        if self.before <= 0:
            return f"AP on {self.data} ({self.images} images) is {self.before:.4f} before: that proves nothing"
        parts = f"; {' and '.join(self.float_parts)} left in float32" if self.float_parts else ""
        return (
            f"AP on {self.data} ({self.images} images): {self.before:.4f} before, {self.after:.4f} after{masks}: "
            f"{max(0.0, self.lost):.2f} points lost of {self.allowed:g} allowed{parts}"
        )


class Certificate(NamedTuple):
    """Two sides, the images, and how far the sides agree at each batch size.

    Where they do not: the first place where two detectors diverge, and what explains it, `explained_wholly` where with
    that nothing differs. Detections below `least_score` were not compared.
    """

    subject: Party
    oracle: Party
    images: Sequence[Compared]
    agreement: Mapping[int, Agreement]
    tolerance: Tolerance = FLOAT32
    divergence: Divergence | None = None
    explained_by: Sequence[str] | None = ()  # None: no conventions were tried
    explained_wholly: bool = False
    quality: Quality | None = None
    least_score: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the sides agree at every batch size, on images with detections; of a quantised side, by its AP."""
        if self.quality is not None:
            finds = all(each.found > 0 or not each.expected for each in self.agreement.values())
            return self.quality.passed and finds
        if self.explained_by is None and any(each.one_without_masks for each in self.agreement.values()):
            return False  # an exported file without the masks of its model
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
                {"file": each.name, "height": each.height, "width": each.width, "sha256": each.sha256}
                for each in self.images
            ],
            "tolerance": self.tolerance._asdict(),
            "from_score": self.least_score,
            "batches": [{"batch": batch, **_agreement(each)} for batch, each in self.agreement.items()],
            "first_divergence": self.divergence and self.divergence._asdict(),
            "explained_by": list(self.explained_by or ()),
            "explained_wholly": self.explained_wholly,
            "quality": self.quality and {**self.quality._asdict(), "lost": self.quality.lost},
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
        if self.quality is not None:
            return [*lines, self.quality.line()]
        if not any(each.expected for each in self.agreement.values()):
            return [*lines, "Nothing is detected in these images, which proves nothing: give others."]
        if self.passed:
            return [*lines, "The same detections."]
        if self.divergence is not None:
            stage, place, difference = self.divergence
            lines.append(f"First different: {stage} ({place}), by {difference:.1e} of its largest value.")
        if self.explained_by is None:
            return lines
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
