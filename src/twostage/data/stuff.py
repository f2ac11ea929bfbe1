"""Stuff maps: the class of every pixel, stuff and things, for a semantic branch (Chen et al. 2019, HTC).

A data set has them as 8-bit PNGs with the names of its images in `stuff/<split>/`, as generated scenes do, or in
`stuffthingmaps/<split>/`, as COCO does; folders of images, `images/` and `<split>/`, are not repeated there. 255 is
an unlabelled pixel. `names.txt` beside the splits lists the classes, one per line; without it they are COCO's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, fault
from twostage.data.flat import FlatStrings
from twostage.data.names import name_parts
from twostage.errors import DataError

FOLDERS = ("stuff", "stuffthingmaps")
NAMES = "names.txt"
UNKNOWN = 255
COCO_CLASSES = 183  # COCO-Stuff's stuffthingmaps: category ids minus 1, with unused ones
_MODES = ("L", "P")
_UNREADABLE = (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
STRIDE = 8  # of the targets of a semantic branch, in pixels of the resized image


@dataclass(frozen=True)
class Stuff:
    """The map file of each image of a split, and the number of classes in the maps."""

    paths: FlatStrings
    classes: int

    def read(self, index: int, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
        """The map of an image of this size. Raises DataError for another size, unknown classes, or a missing map."""
        path = Path(self.paths[index])
        try:
            with Image.open(path) as image:
                if image.mode not in _MODES:
                    raise DataError(f"{path}: has {image.mode} pixels. Write a map as 8-bit numbers, one per pixel.")
                pixels = np.array(image)
        except _UNREADABLE as error:
            raise DataError(
                f"{path}: cannot be read as a stuff map ({error}). Add the file, or write it again."
            ) from None
        if pixels.shape != (height, width):
            raise DataError(
                f"{path}: the map is {pixels.shape[1]} x {pixels.shape[0]}, its image {width} x {height}. "
                "Make the map for this image."
            )
        unknown = pixels[(pixels >= self.classes) & (pixels != UNKNOWN)]
        if len(unknown):
            raise DataError(
                f"{path}: has the class {unknown[0]}; there are {self.classes}, counted from 0, and {UNKNOWN} for "
                f"unlabelled pixels. List all classes in {path.parent.parent / NAMES}."
            )
        return pixels


def find_stuff(dataset: Dataset) -> Stuff | None:
    """The maps of a split, None if the data set has none. Raises DataError if only some images have one."""
    folder = _folder(dataset)
    if folder is None:
        return None
    paths = _places(folder, dataset)
    lacking = [path for path in paths if not path.is_file()]
    if lacking:
        raise DataError(
            f"{lacking[0]}: does not exist, and {len(lacking)} of {len(paths)} images have no stuff map. "
            "Add them, or remove the folder to train without."
        )
    return Stuff(FlatStrings.of([str(path) for path in paths]), _classes(folder.parent / NAMES))


def stuff_faults(dataset: Dataset) -> Iterator[Fault]:
    """Missing maps of a split, and those whose header does not fit their image; nothing if there are no maps."""
    folder = _folder(dataset)
    paths = [] if folder is None else _places(folder, dataset)
    lacking = [path for path in paths if not path.is_file()]
    if lacking:
        message = f"does not exist, and {len(lacking)} of {len(paths)} images have no stuff map"
        yield fault("stuff-map", lacking[0], "", message, "Add them, or remove the folder to train without")
    for path, (height, width) in zip(paths, dataset.sizes.tolist(), strict=False):
        wrong = _wrong(path, height, width) if path.is_file() else ""
        if wrong:
            yield fault("stuff-map", path, "", wrong, "Make the map for its image, or remove the folder of maps")


def _wrong(path: Path, height: int, width: int) -> str:
    try:
        with Image.open(path) as image:
            mode, size = image.mode, image.size
    except _UNREADABLE as error:
        return f"cannot be read ({error})"
    if mode not in _MODES:
        return f"has {mode} pixels, not 8-bit numbers"
    return "" if size == (width, height) else f"the map is {size[0]} x {size[1]}, its image {width} x {height}"


class Map(NamedTuple):
    """The map of one image, and the folder of the maps of all splits."""

    path: Path
    folder: Path


def maps_of(datasets: Sequence[Dataset]) -> dict[str, Map]:
    """The map of every image that has one, by the image's path, to be copied with a data set."""
    maps = {}
    for dataset in datasets:
        folder = _folder(dataset)
        if folder is not None:
            places = zip(range(len(dataset)), _places(folder, dataset), strict=True)
            maps.update({dataset.paths[i]: Map(place, folder.parent) for i, place in places if place.is_file()})
    return maps


def copies(maps: Mapping[str, Map], dataset: Dataset, names: Sequence[str], root: Path) -> dict[Path, Path]:
    """What is to be copied, and from where, for the maps of a split that is written to `root` with these `names`."""
    targets = {}
    for index, name in enumerate(names):
        source = maps.get(dataset.paths[index])
        if source is not None:
            folder = root / source.folder.name
            targets[(folder / dataset.split / name).with_suffix(".png")] = source.path
            if (source.folder / NAMES).is_file():
                targets[folder / NAMES] = source.folder / NAMES
    return targets


def coarse(stuff: UInt8[Tensor, "h w"], height: int, width: int) -> UInt8[Tensor, "i j"]:
    """The map of an image that was resized to this size, at the middle of every cell of `STRIDE` pixels."""
    rows, columns = (
        (torch.arange(0, new, STRIDE).add(STRIDE / 2).clamp(max=new - 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in ((height, stuff.shape[0]), (width, stuff.shape[1]))
    )
    return stuff[rows[:, None], columns]


def _folder(dataset: Dataset) -> Path | None:
    return next((f for name in FOLDERS if (f := dataset.root / name / dataset.split).is_dir()), None)


def _places(folder: Path, dataset: Dataset) -> list[Path]:
    """The path of the map of each image."""
    return [folder.joinpath(*name_parts(dataset, index)).with_suffix(".png") for index in range(len(dataset))]


def _classes(names: Path) -> int:
    if not names.is_file():
        return COCO_CLASSES
    return len([line for line in names.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()])
