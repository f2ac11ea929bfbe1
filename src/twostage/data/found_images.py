"""Where the images of an annotation file are: its paths may be those of another machine.

Tools write absolute paths, drives and backslashes. An image is looked for by its path as written, then by the end of
it: `C:\\project\\images\\a.jpg` by `project/images/a.jpg`, `images/a.jpg` and `a.jpg`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twostage.data.files import exists

_LOOKED_AT = 20  # names by which the folder is chosen


@dataclass(frozen=True)
class FoundImages:
    """The folder of the images, how many parts of each path are left out there, and a message if any are."""

    folder: Path
    skip: int | None  # None: as written
    any: bool  # whether any image exists
    moved: str = ""

    def place(self, name: str) -> tuple[str, Path]:
        """The name and the path of an image: relative to the folder if it was found by the end of its path."""
        path = self.folder / name
        if self.skip is None or exists(path):
            return name, path
        for end in _ends(name)[self.skip :]:
            if exists(self.folder / end):
                return end, self.folder / end
        return name, path


def find_images(names: Sequence[str], folders: Sequence[Path]) -> FoundImages:
    """The folder that has most of the first images, by their path as written if it has any, else by the end of it."""
    some = list(names[:_LOOKED_AT])
    best = max(folders, key=lambda folder: sum(exists(folder / name) for name in some))
    if any(exists(best / name) for name in some):
        missing = [name for name in names if not exists(best / name)]
        moved = [name for name in missing if any(exists(best / end) for end in _ends(name))]
        if not moved:
            return FoundImages(best, None, True)
        message = f"{len(moved)} of {len(names)} are not there as written, {moved[0]!r} the first"
        return FoundImages(best, 0, True, f"{message}; found by the end of their paths in {best}")
    counted = [(hits, -skip, -place) for place, skip, hits in _counted(some, folders) if hits]
    if not counted:
        found = next((folder for folder in folders if any(exists(folder / name) for name in names)), None)
        return FoundImages(found or folders[0], None, found is not None)
    _, skip, place = max(counted)
    folder = folders[-place]
    message = f"{names[0]!r} and others are not there as written; found by the end of their paths in {folder}"
    return FoundImages(folder, -skip, True, message)


def _counted(names: Sequence[str], folders: Sequence[Path]) -> Iterator[tuple[int, int, int]]:
    """Of each folder, its number, the parts left out, and how many names it then has."""
    deepest = max((len(_ends(name)) for name in names), default=0)
    for place, folder in enumerate(folders):
        for skip in range(deepest):
            yield place, skip, sum(exists(folder / end) for name in names for end in _ends(name)[skip : skip + 1])


def _ends(name: str) -> list[str]:
    """The path with forward slashes and without a drive, then without its first part, and so on."""
    parts = [part for part in re.split(r"[\\/]+", re.sub(r"^[A-Za-z]:", "", name)) if part not in ("", ".")]
    return ["/".join(parts[first:]) for first in range(len(parts))]
