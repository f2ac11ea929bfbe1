"""Writes splits as a data set in any format, reads it again and compares.

Beside a format that cannot hold ids, crowds, areas or masks, `extras` keeps them.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from twostage.atomic import write_text
from twostage.data.dataset import Dataset, difference
from twostage.data.extras import NAME, extras_document
from twostage.data.faults import FaultyDataError
from twostage.data.layout import Options
from twostage.data.recognise import check_same_classes, find_layout, opener, writer_of
from twostage.data.stuff import Map, copies
from twostage.errors import TwostageError

log = logging.getLogger("twostage.data")

Pictures = Literal["copy", "link"]


def write_dataset(
    folder: Path,
    datasets: Sequence[Dataset],
    kind: str,
    *,
    pictures: Pictures = "copy",
    maps: Mapping[str, Map] | None = None,
) -> None:
    """Write splits into an empty folder in the format `kind`; `pictures` is whether image files are copied or linked.

    Images in memory are written as PNG, stuff `maps` are copied. Raises DataError for splits with different classes,
    UsageError for a split that the format cannot hold, TwostageError if files cannot be written or do not read back as
    they were.
    """
    for other in datasets[1:]:
        check_same_classes(datasets[0], other)
    writer = writer_of(kind)
    names = writer.image_names(datasets, bool(maps))  # a map has the name of its image but for the suffix
    places = [
        [folder / writer.image_folder.format(split=dataset.split) / name for name in of_split]
        for dataset, of_split in zip(datasets, names, strict=True)
    ]
    annotations = writer.write(folder, datasets, names)
    for dataset, paths in zip(datasets, places, strict=True):
        for index, path in enumerate(paths):
            _place(dataset.source(index), path, pictures)
    for dataset, of_split in zip(datasets, names, strict=True):
        for target, source in copies(maps or {}, dataset, of_split, folder).items():
            _place(source, target, "copy")
    lost = _lost(folder, datasets, places)
    if lost and not writer.complete:
        write_text(folder / NAME, json.dumps(extras_document(datasets, annotations, folder)))
        lost = _lost(folder, datasets, places)
        log.info(
            "%s keeps what %s cannot hold, such as ids, crowds, areas or masks: other programs ignore it.",
            *(NAME, kind.upper()),
        )
    if lost:
        raise TwostageError(f"{folder}: {kind.upper()} does not hold this data set: {lost}.")


def _place(source: Path | np.ndarray, target: Path, pictures: Pictures) -> None:
    if target.exists():  # splits may share an image
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(source, Path):
            Image.fromarray(source).save(target)
        elif pictures == "link":
            target.symlink_to(source.absolute())
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        raise TwostageError(f"{target}: cannot be written: {error.strerror or error}.") from error


def _lost(folder: Path, datasets: Sequence[Dataset], places: Sequence[Sequence[Path]]) -> str:
    """How the written splits differ from the given ones; "" if they do not."""
    open_split = opener(find_layout(folder), Options(repair=False, boxes="format"))
    for dataset, paths in zip(datasets, places, strict=True):
        try:
            written = open_split(dataset.split)
        except FaultyDataError as error:  # a box that the format alone takes for a mistake
            return f"the split {dataset.split!r} does not read back: {error}"
        index_of = {written.path(index): index for index in range(len(written))}
        if len(index_of) != len(paths) or any(path not in index_of for path in paths):
            return f"the split {dataset.split!r} has {len(paths)} images, of which it reads {len(index_of)}"
        differences = difference(dataset, written, [index_of[path] for path in paths])
        if differences:
            return f"in the split {dataset.split!r} {differences}"
    return ""
