"""Compares a detector with another side on images: how far they agree, where they part, and what explains it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from twostage.errors import DataError, UsageError
from twostage.evaluation.results import Results
from twostage.models.build import Model
from twostage.parity.agreement import FLOAT32, Agreement, Tolerance
from twostage.parity.certificate import Certificate, Compared, Party
from twostage.parity.diagnosis import compare, diagnose
from twostage.parity.divergence import Divergence
from twostage.parity.variants import Pixels, Variant
from twostage.weights.file import sha256

log = logging.getLogger("twostage.parity")

BATCHES = (1, 3)
Diverges = Callable[[Model, Pixels], Divergence | None]  # of the other side and a model, on an image


def batches_of(photos: "Photos") -> tuple[int, ...]:
    """How many of the photos are compared at a time: one, and three where there are as many."""
    return tuple(batch for batch in BATCHES if batch <= len(photos.pixels))


class Photos(NamedTuple):
    """Images to compare on: their files and pixels (RGB)."""

    files: Sequence[Path]
    pixels: Sequence[Pixels]


class Subject(NamedTuple):
    """The detector that is compared, and its file."""

    file: Path
    variant: Variant


def certify(
    subject: Subject,
    oracle: Party,
    expected: Mapping[int, Results],
    photos: Photos,
    *,
    diverges: Diverges | None = None,
    tolerance: Tolerance = FLOAT32,
) -> Certificate:
    """The certificate of a detector against what the other side found in the photos, by the number of images at a time.

    Where they differ, the conventions that explain it are looked for, and, with `diverges` the first place
    where the two compute something else. Raises DataError where nothing was found at all:
    that proves nothing.
    """
    if sha256(subject.file) == sha256(oracle.file):
        raise UsageError(f"{oracle.file}: is the same file as {subject.file}, which proves nothing. Give another side.")
    alone = expected[1]
    if not len(alone):
        raise DataError(f"{oracle.file}: nothing is detected in these images, which proves nothing. Give other images.")
    model = subject.variant.build()
    agreements: dict[int, Agreement] = {
        batch: compare(model, photos.pixels, each, tolerance, batch) for batch, each in expected.items()
    }
    images = [Compared.of_file(*photo) for photo in zip(*photos, strict=True)]
    party = Party(subject.file, "twostage")
    certificate = Certificate(party, oracle, images, agreements, tolerance)
    if certificate.passed:
        return certificate
    if agreements[1].same(tolerance):  # on a common canvas alone: what lies beside an image
        says = "padding: the sides agree in images one at a time, and differ in several on one canvas"
        return certificate._replace(explained_by=(says,))
    divergence = diverges(model, photos.pixels[0]) if diverges is not None else None
    log.info("They differ: looking for a convention that explains it, which takes a minute or two ...")
    found = diagnose(subject.variant, photos.pixels, alone, tolerance)
    explained = tuple(
        each.says if each.says.startswith(each.name) else f"{each.name}: {each.says}" for each in found.found
    )
    return certificate._replace(
        divergence=divergence, explained_by=explained, explained_wholly=bool(explained) and found.after.same(tolerance)
    )
