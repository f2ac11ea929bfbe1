"""`data check --fix`: a copy of a data set without its faults; the source is never touched."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from twostage.data.convert import Written
from twostage.data.dataset import Dataset, select_images
from twostage.data.duplicates import may_share, same_images
from twostage.data.faults import Fault, FaultyDataError, fault
from twostage.data.layout import Layout, Options, VocOffset
from twostage.data.recognise import find_layout, opener
from twostage.data.stuff import maps_of
from twostage.data.write import write_dataset
from twostage.errors import DataError
from twostage.folders import whole_folder


def fix_dataset(
    path: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    voc_offset: VocOffset = "auto",
    deep: bool = False,
) -> Written:
    """Write the data set at `path` into the new folder `out`, in its own layout, with what can be used of it.

    Boxes are clipped or dropped, sizes are those of the images, images that cannot be read (`deep`: decoded) and
    records that cannot be understood are left out, and an image in two splits leaves the larger one. Raises DataError
    where nothing is left, or where splits have different classes.
    """
    options = Options(Path(images) if images else None, voc_offset, "skip")
    faults: list[Fault] = []
    with whole_folder(Path(out), "--fix") as folder:
        layout = find_layout(path)
        datasets = list(_usable(layout, options, faults))
        maps = maps_of(datasets)
        if deep:
            datasets = [_decodable(dataset, faults) for dataset in datasets]
        datasets = [dataset for dataset in _apart(datasets, faults) if len(dataset)]
        if not datasets:
            raise DataError(f"{path}: nothing is left that could be used: no image of any split.")
        write_dataset(folder, datasets, layout.kind, maps=maps)
    return Written.of(Path(out), layout.kind, datasets, faults)


def _usable(layout: Layout, options: Options, faults: list[Fault]) -> Iterator[Dataset]:
    open_split = opener(layout, options)
    for split in layout.splits:
        try:
            yield open_split(split)
        except FaultyDataError as error:  # nothing of it can be used
            faults += error.faults


def _decodable(dataset: Dataset, faults: list[Fault]) -> Dataset:
    good = []
    for index in range(len(dataset)):
        try:
            dataset.image(index)
        except DataError as error:
            faults.append(fault("unreadable-image", dataset.file_name(index), "", str(error).rstrip("."), "Left out"))
        else:
            good.append(index)
    return select_images(dataset, np.array(good, dtype=np.int64))


def _apart(datasets: Sequence[Dataset], faults: list[Fault]) -> list[Dataset]:
    """The splits without images that another one, which should share none, has too: the smaller split keeps them."""
    keep = [np.ones(len(dataset), dtype=bool) for dataset in datasets]
    for places in same_images(datasets):
        numbers = {number for number, _ in places}
        for number, index in places:
            rivals = [n for n in numbers - {number} if not may_share(datasets[n].split, datasets[number].split)]
            if any((len(datasets[n]), n) < (len(datasets[number]), number) for n in rivals):
                keep[number][index] = False
                name, split = datasets[number].file_name(index), datasets[number].split
                faults.append(fault("duplicate-image", name, "", "is in a smaller split too", f"Left out of {split!r}"))
    return [select_images(d, np.flatnonzero(kept)) for d, kept in zip(datasets, keep, strict=True)]
