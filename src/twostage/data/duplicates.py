"""Pictures that are there twice, found by their content; in two splits they make a validation score worth less."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, fault
from twostage.data.files import exists


def duplicate_faults(datasets: Sequence[Dataset]) -> Iterator[Fault]:
    """A fault for every picture that two splits share, and a note for every copy within one split.

    Splits of which one's name holds the other's (trainval and val) are meant to overlap.
    """
    places: dict[str, list[tuple[Dataset, int]]] = defaultdict(list)
    for dataset in datasets:
        for index in range(len(dataset)):
            places[str(dataset.path(index))].append((dataset, index))
    for paths in _same_content(list(places)):
        entries = [entry for path in paths for entry in places[path]]
        yield from _named(entries)


def _named(entries: Sequence[tuple[Dataset, int]]) -> Iterator[Fault]:
    """Every copy against the first one of its split and of each other: all pairs would grow as the square."""
    splits: dict[str, list[str]] = defaultdict(list)
    for dataset, index in entries:
        splits[dataset.split].append(dataset.file_name(index))
    for split, (first, *copies) in splits.items():
        for name in copies:
            message = f"the same picture as {first} in the split {split!r}"
            yield fault("repeated-image", name, "", message, "Keep one of them")
    for one, other in combinations(splits, 2):
        if one not in other and other not in one:
            pairs = [(name, splits[other][0]) for name in splits[one]]
            for name, twin in pairs + [(splits[one][0], name) for name in splits[other][1:]]:
                message = f"in the split {one!r}, and as {twin} in the split {other!r}"
                yield fault("duplicate-image", name, "", message, "Remove it from one of the splits")


def _same_content(paths: Sequence[str]) -> Iterator[list[str]]:
    """Groups of files with equal bytes; a file of a size of its own is not read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in filter(exists, paths):  # one that vanished meanwhile has no copy
        by_size[Path(path).stat().st_size].append(path)
    for same_size in by_size.values():
        if len(same_size) == 1:
            yield same_size
            continue
        by_content: dict[bytes, list[str]] = defaultdict(list)
        for path in same_size:
            by_content[_digest(path)].append(path)
        yield from by_content.values()


def _digest(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
