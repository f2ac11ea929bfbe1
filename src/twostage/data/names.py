"""File names of the images in a data set that is written: the old ones where possible, all different."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from twostage.data.dataset import Dataset
from twostage.data.images import EXTENSIONS, read_header

# Not allowed in XML or in a list of lines.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff\ufffe\uffff]")

_LONGEST = 200  # bytes of a name without suffix and number; most systems take 255 in all
_KEPT = 50  # characters of a longer one, of at most four bytes


def nested_names(datasets: Sequence[Dataset], by_stem: bool) -> list[list[str]]:
    """Names for the images of splits that each have their own folder; subfolders are kept.

    With `by_stem` names differ even without suffix.
    """
    names = []
    for dataset in datasets:
        taken: set[str] = set()
        own = ("/".join(name_parts(dataset, index)) for index in range(len(dataset)))
        names.append([_free(name, taken, by_stem=by_stem) for name in own])
    return names


def flat_names(datasets: Sequence[Dataset]) -> list[list[str]]:
    """Names for the images of all splits in one folder; they differ even without suffix.

    An image that several splits share with the same objects gets one name.
    """
    taken: set[str] = set()
    name_of: dict[tuple[object, ...], str] = {}
    names: list[list[str]] = []
    for dataset in datasets:
        names.append([])
        for index in range(len(dataset)):
            objects = dataset.objects(index)
            source = dataset.source(index)
            image = str(source) if isinstance(source, Path) else id(source)
            key = (image, *(column.tobytes() for column in objects[:4]))
            if key not in name_of:
                plain = _UNWRITABLE.sub("_", "_".join(name_parts(dataset, index)))
                name_of[key] = _free(plain, taken, by_stem=True)
            names[-1].append(name_of[key])
    return names


def name_parts(dataset: Dataset, index: int) -> list[str]:
    """The parts of an image's path, without the folders in which the formats keep images.

    Dots at the beginning of a part are left out: files with such names are hidden, and readers pass them over.
    """
    # Two slashes at the beginning, of a network share, are a part of their own.
    named = PurePosixPath(dataset.file_name(index).replace("\\", "/"))
    parts = [plain for part in named.parts if (plain := part.lstrip("./"))]
    while len(parts) > 1 and (parts[0] in ("images", dataset.split) or parts[0].endswith(":")):
        del parts[0]
    parts = parts or ["image"]
    if Path(parts[-1]).suffix.lower() not in EXTENSIONS:
        source = dataset.source(index)
        parts[-1] += f".{read_header(source).format.lower()}" if isinstance(source, Path) else ".png"
    return parts


def _free(name: str, taken: set[str], *, by_stem: bool) -> str:
    """The name, with a number if it is taken. Case is ignored, as on some file systems."""
    path = PurePosixPath(name)
    stem = path.stem.strip() or "image"
    if len(stem.encode("utf-8", "surrogatepass")) > _LONGEST:
        stem = stem[-_KEPT:].lstrip(".") or "image"
    number = 1
    while True:
        tail = "" if number == 1 else f"-{number}"
        candidate = path.with_name(f"{stem}{tail}{path.suffix}")
        key = str(candidate.with_suffix("") if by_stem else candidate).casefold()
        if key not in taken:
            taken.add(key)
            return str(candidate)
        number += 1
