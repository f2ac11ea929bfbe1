"""What a data format is: one object that detects, opens and writes data sets of its layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from twostage.data.dataset import Dataset
from twostage.data.faults import OnError
from twostage.data.images import Header, probe

VocOffset = Literal["auto", "0", "1"]
OpenSplit = Callable[[str], Dataset]
MASKED_SPLIT = "segmentation_"  # prefix of the splits that VOC lists for images with masks
Names = list[list[str]]  # of the images of every split


class Options(NamedTuple):
    """How a data set is opened, with the arguments of `open_dataset`; `header_of` reads the header of an image.

    `boxes` is their notation (`notation.Notation`): `format` that of the format, `auto` the same, and an error where
    all of them show another.
    """

    images: Path | None = None
    voc_offset: VocOffset = "auto"
    on_error: OnError = "default"
    require_images: bool = True
    repair: bool = True
    boxes: str = "auto"
    header_of: Callable[[str], Header] = probe


@dataclass(frozen=True)
class Layout:
    """A recognised data set; `sources` holds the file or folder that each split is read from."""

    format: "Format"
    root: Path
    sources: Mapping[str, Path]

    @property
    def kind(self) -> str:
        """The name of the format: voc, coco, yolo, labelme or via."""
        return self.format.name

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted(self.sources))

    def __str__(self) -> str:
        return f"{self.kind.upper()} layout in {self.root} with the splits {', '.join(self.splits)}"


@dataclass(frozen=True)
class Writer:
    """How data sets are written in a format.

    `write` writes the annotations of splits whose images have these names, and returns the file of each image;
    `image_names` chooses the names (by stem: unique without the suffix); `image_folder` is the folder of the images of
    a `{split}` under the root. `splits_of` renames splits to what the format can write. `complete` formats hold all
    that a `Dataset` has; for the others `twostage.json` keeps the rest.
    """

    write: Callable[[Path, Sequence[Dataset], Names], list[list[Path]]]
    image_names: Callable[[Sequence[Dataset], bool], Names]
    image_folder: str
    splits_of: Callable[[Sequence[Dataset]], Sequence[Dataset]] = lambda datasets: datasets
    complete: bool = False


@dataclass(frozen=True)
class Format:
    """A data format; `twostage.data.FORMATS` lists them all.

    `detect` returns the layout of a file or folder of this format, else None; it raises DataError for one that is of
    this format and broken. `open` reads what all splits share and returns a function that opens one split; it raises
    FaultyDataError. Formats without a `writer` are only read. `description` is how to recognise the format.
    """

    name: str
    description: str
    detect: Callable[[Path], Layout | None]
    open: Callable[[Layout, Options], OpenSplit]
    writer: Writer | None = None
