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
    for (first, i), (second, j) in combinations(entries, 2):
        one, other = first.file_name(i), second.file_name(j)
        if first.split == second.split:
            message = f"the same picture as {other} in the split {second.split!r}"
            yield fault("repeated-image", one, "", message, "Keep one of them")
        elif first.split not in second.split and second.split not in first.split:
            message = f"in the split {first.split!r}, and as {other} in the split {second.split!r}"
            yield fault("duplicate-image", one, "", message, "Remove it from one of the splits")


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
