"""Maps of stuff: the class of every pixel, ground and things alike, for a semantic branch (Chen et al. 2019, HTC).

A data set has them as 8-bit PNGs of its images' names in `stuff/<split>/`, as generated scenes do, or in
`stuffthingmaps/<split>/`, as COCO does; folders of images, `images/` and `<split>/`, are not repeated there. 255 is a
pixel of which nothing is known. `names.txt` beside the splits lists the classes, one a line; without it they are
COCO's.
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
COCO_CLASSES = 183  # COCO-Stuff's stuffthingmaps: category ids less one, and some to spare
_MODES = ("L", "P")
_UNREADABLE = (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
STRIDE = 8  # pixels of the resized image between what a semantic branch learns


@dataclass(frozen=True)
class Stuff:
    """Where the map of each image of a split is, and how many classes the maps tell apart."""

    paths: FlatStrings
    classes: int

    def read(self, index: int, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
        """The map of an image of this size. Raises DataError for another size, for other classes, for no map."""
        path = Path(self.paths[index])
        try:
            with Image.open(path) as image:
                if image.mode not in _MODES:
                    raise DataError(f"{path}: holds {image.mode} pixels. Write a map as 8-bit numbers, one a pixel.")
                found = np.array(image)
        except _UNREADABLE as error:
            raise DataError(
                f"{path}: cannot be read as a map of stuff ({error}). Bring it, or write it anew."
            ) from None
        if found.shape != (height, width):
            raise DataError(
                f"{path}: the map is {found.shape[1]} x {found.shape[0]}, its image {width} x {height}. "
                "Make the map for this image."
            )
        strange = found[(found >= self.classes) & (found != UNKNOWN)]
        if len(strange):
            raise DataError(
                f"{path}: holds the class {strange[0]}; there are {self.classes}, counted from 0, and {UNKNOWN} for "
                f"what is not known. List all classes in {path.parent.parent / NAMES}."
            )
        return found


def find_stuff(dataset: Dataset) -> Stuff | None:
    """The maps of a split, None where the data set has none. Raises DataError where only some images have one."""
    folder = _folder(dataset)
    if folder is None:
        return None
    paths = [_place(folder, dataset, index) for index in range(len(dataset))]
    lacking = [path for path in paths if not path.is_file()]
    if lacking:
        raise DataError(
            f"{lacking[0]}: does not exist, and {len(lacking)} of {len(paths)} images have no map of stuff. "
            "Bring them, or remove the folder to learn without."
        )
    return Stuff(FlatStrings.of([str(path) for path in paths]), _classes(folder.parent / NAMES))


def stuff_faults(dataset: Dataset) -> Iterator[Fault]:
    """What the headers of a split's maps tell a semantic branch in vain; nothing where there are no maps."""
    folder = _folder(dataset)
    paths = [] if folder is None else [_place(folder, dataset, index) for index in range(len(dataset))]
    there = [path.is_file() for path in paths]
    lacking = [path for path, found in zip(paths, there, strict=True) if not found]
    if lacking:
        message = f"does not exist, and {len(lacking)} of {len(paths)} images have no map of stuff"
        yield fault("stuff-map", lacking[0], "", message, "Bring them, or remove the folder to learn without")
    for path, found, (height, width) in zip(paths, there, dataset.sizes.tolist(), strict=False):
        wrong = _wrong(path, height, width) if found else ""
        if wrong:
            yield fault("stuff-map", path, "", wrong, "Make the map for its image, or remove the folder of maps")


def _wrong(path: Path, height: int, width: int) -> str:
    try:
        with Image.open(path) as image:
            mode, size = image.mode, image.size
    except _UNREADABLE as error:
        return f"cannot be read ({error})"
    if mode not in _MODES:
        return f"holds {mode} pixels, no 8-bit numbers"
    return "" if size == (width, height) else f"the map is {size[0]} x {size[1]}, its image {width} x {height}"


class Map(NamedTuple):
    """The map of one image, and the folder that holds those of all splits."""

    path: Path
    folder: Path


def maps_of(datasets: Sequence[Dataset]) -> dict[str, Map]:
    """The map of every image that has one, by the image's path: what a copy of a data set takes along."""
    found = {}
    for dataset in datasets:
        folder = _folder(dataset)
        if folder is not None:
            places = {dataset.paths[index]: _place(folder, dataset, index) for index in range(len(dataset))}
            found.update({image: Map(place, folder.parent) for image, place in places.items() if place.is_file()})
    return found


def copies(maps: Mapping[str, Map], dataset: Dataset, names: Sequence[str], root: Path) -> dict[Path, Path]:
    """What is to be copied, and from where, for the maps of a split that is written to `root` with these `names`."""
    found = {}
    for index, name in enumerate(names):
        source = maps.get(dataset.paths[index])
        if source is not None:
            folder = root / source.folder.name
            found[(folder / dataset.split / name).with_suffix(".png")] = source.path
            if (source.folder / NAMES).is_file():
                found[folder / NAMES] = source.folder / NAMES
    return found


def coarse(stuff: UInt8[Tensor, "h w"], height: int, width: int) -> UInt8[Tensor, "i j"]:
    """The map of an image that was resized to this size, at the middle of every cell of `STRIDE` pixels."""
    rows, columns = (
        (torch.arange(0, new, STRIDE).add(STRIDE / 2).clamp(max=new - 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in ((height, stuff.shape[0]), (width, stuff.shape[1]))
    )
    return stuff[rows[:, None], columns]


def _folder(dataset: Dataset) -> Path | None:
    return next((f for name in FOLDERS if (f := dataset.root / name / dataset.split).is_dir()), None)


def _place(folder: Path, dataset: Dataset, index: int) -> Path:
    """Where the map of an image belongs."""
    return folder.joinpath(*name_parts(dataset, index)).with_suffix(".png")


def _classes(names: Path) -> int:
    if not names.is_file():
        return COCO_CLASSES
    return len([line for line in names.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()])
