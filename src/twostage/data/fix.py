"""`data check --fix`: a copy of a data set without its faults; the source is never changed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twostage.data.convert import Written
from twostage.data.dataset import Dataset, select_images
from twostage.data.duplicates import may_share, same_images
from twostage.data.faults import REMOVED, UNDECIDED, Fault, fault
from twostage.data.layout import Options, VocOffset
from twostage.data.recognise import find_layout, usable_splits, writer_of
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
    boxes: str = "auto",
    deep: bool = False,
    remove: bool = False,
) -> Written:
    """Write the usable part of the data set at `path` into the new folder `out`, in its own format.

    Boxes are clipped, and sizes are those of the images. With `remove` objects and images that cannot be used are left
    out (`deep`: undecodable images too), and an image in two splits is removed from the larger one. Raises DataError
    where something would be left out without `remove`, where the notation of the boxes is in doubt, if nothing is left,
    or if splits have different classes.
    """
    options = Options(Path(images) if images else None, voc_offset, "skip", boxes=boxes)
    faults: list[Fault] = []
    with whole_folder(Path(out), "--fix") as folder:
        layout = find_layout(path)
        writer_of(layout.kind)
        datasets = list(usable_splits(layout, options, faults))
        maps = maps_of(datasets)
        if deep:
            datasets = [_decodable(dataset, faults) for dataset in datasets]
        datasets = [dataset for dataset in _without_shared(datasets, faults) if len(dataset)]
        if not datasets:
            raise DataError(f"{path}: nothing usable is left: no image of any split.")
        _require_choice(path, [*faults, *(one for dataset in datasets for one in dataset.faults)], remove=remove)
        write_dataset(folder, datasets, layout.kind, maps=maps)
    return Written.of(Path(out), layout.kind, datasets, faults)


def _require_choice(path: str | Path, faults: Sequence[Fault], *, remove: bool) -> None:
    """Raises DataError where a copy would have other boxes than are meant, or lacks something without `remove`."""
    doubt = next((one for one in faults if one.code in UNDECIDED), None)
    if doubt is not None:
        raise DataError(f"{path}: no copy is written before this is decided: {doubt}.")
    lost = Counter(one.code for one in dict.fromkeys(faults) if one.code in REMOVED)
    if lost and not remove:
        counted = ", ".join(f"{count} {code}" for code, count in lost.most_common())
        raise DataError(
            f"{path}: no copy is written, for it would lack what these faults concern: {counted}. Mend them, or leave "
            "that out with --remove."
        )


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


def _without_shared(datasets: Sequence[Dataset], faults: list[Fault]) -> list[Dataset]:
    """The splits without images that another split has too, unless they may overlap: the smaller split keeps them."""
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
