"""Images that occur twice, found by their content; in two splits they invalidate a validation score."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, fault
from twostage.data.files import exists
from twostage.data.layout import MASKED_SPLIT


def duplicate_faults(datasets: Sequence[Dataset]) -> Iterator[Fault]:
    """A fault for every image that two splits share, and a note for every copy within one split.

    Splits may overlap if the name of one contains that of the other (trainval and val).
    """
    for places in same_images(datasets):
        names: dict[str, list[str]] = defaultdict(list)
        for number, index in places:
            names[datasets[number].split].append(datasets[number].file_name(index))
        yield from _faults(names)


def same_images(datasets: Sequence[Dataset]) -> Iterator[list[tuple[int, int]]]:
    """The places of every distinct image of the splits, by its bytes: pairs (split, image) of indices."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, dataset in enumerate(datasets):
        for index in range(len(dataset)):
            places[dataset.paths[index]].append((number, index))
    sizes = {path: Path(path).stat().st_size for path in filter(exists, places)}  # it may have been removed meanwhile
    shared = Counter(sizes.values())
    groups: dict[int, dict[bytes, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for path, size in sizes.items():  # only files of equal size are read
        groups[size][_digest(path) if shared[size] > 1 else b""] += places[path]
    for same_size in groups.values():
        yield from same_size.values()


def may_share(one: str, other: str) -> bool:
    """Whether two splits of these names may have images in common."""
    one, other = (name.removeprefix(MASKED_SPLIT) for name in (one, other))
    return one in other or other in one


def _faults(names: Mapping[str, Sequence[str]]) -> Iterator[Fault]:
    """Every copy is paired with the first one of each split only: all pairs would grow with the square."""
    for split, (first, *copies) in names.items():
        for name in copies:
            message = f"the same image as {first} in the split {split!r}"
            yield fault("repeated-image", name, "", message, "Keep one of them")
    for one, other in combinations(names, 2):
        if not may_share(one, other):
            pairs = [(name, names[other][0]) for name in names[one]]
            for name, twin in pairs + [(names[one][0], name) for name in names[other][1:]]:
                message = f"in the split {one!r}, and as {twin} in the split {other!r}"
                yield fault("duplicate-image", name, "", message, "Remove it from one of the splits")


def _digest(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
