"""A data set in another layout; the source is never touched."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twostage.data.dataset import Dataset
from twostage.data.duplicates import VOC_MASKED
from twostage.data.faults import Fault, OnError, format_faults
from twostage.data.recognise import Options, find_layout, opener
from twostage.data.stuff import maps_of
from twostage.data.voc import VocOffset
from twostage.data.write import Kind, Pictures, write_dataset
from twostage.errors import UsageError
from twostage.folders import whole_folder

log = logging.getLogger("twostage.data")


@dataclass(frozen=True)
class Written:
    """A data set that was written: its number of (images, objects) by split, and what was wrong with its source."""

    path: Path
    layout: Kind
    splits: dict[str, tuple[int, int]]
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, path: Path, layout: Kind, datasets: Sequence[Dataset], faults: Sequence[Fault] = ()) -> "Written":
        """What was written to `path`; `faults` are those found besides the splits' own."""
        counts = {d.split: (len(d), len(d.labels)) for d in datasets}
        return cls(path, layout, counts, tuple(dict.fromkeys([*faults, *(f for d in datasets for f in d.faults)])))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        splits = {name: {"images": images, "objects": objects} for name, (images, objects) in self.splits.items()}
        return {"out": str(self.path), "layout": self.layout, "splits": splits}

    def format(self) -> str:
        """For people: what was wrong with the source, and what was written."""
        faults = [format_faults(self.faults)] if self.faults else []
        held = [f"  {name}: {images} images, {objects} objects" for name, (images, objects) in self.splits.items()]
        return "\n".join([*faults, f"{self.path}: {self.layout.upper()} layout", *held])


def convert(
    path: str | Path,
    out: str | Path,
    to: Kind,
    *,
    images: str | Path | None = None,
    voc_offset: VocOffset = "auto",
    on_error: OnError = "default",
    pictures: Pictures = "copy",
) -> Written:
    """Write all splits of the data set at `path` into the new folder `out`, in the layout `to`.

    Boxes, classes, ids, `difficult`, `iscrowd`, areas and masks are kept as they are written, faulty boxes too; EXIF
    is applied. What is written is read again and compared. Raises DataError for data that cannot be read, UsageError
    for a folder that is not empty.
    """
    options = Options(Path(images) if images else None, voc_offset, on_error, mend=False)
    with whole_folder(Path(out), "--out") as folder:
        layout = find_layout(path)
        open_split = opener(layout, options)
        datasets = [open_split(split) for split in layout.splits]
        maps = maps_of(datasets)
        if to == "yolo":
            datasets = _with_yolos_names(datasets)
        write_dataset(folder, datasets, to, pictures=pictures, maps=maps)
    return Written.of(Path(out), to, datasets)


def _with_yolos_names(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The splits under keys of data.yaml: train2017 is train there; a single one of any name is train too.

    VOC's second lists of pictures, of those with masks, stay behind where there are first ones.
    """
    first = [dataset for dataset in datasets if not dataset.split.startswith(VOC_MASKED)]
    if first and len(first) < len(datasets):
        left = ", ".join(dataset.split for dataset in datasets if dataset.split.startswith(VOC_MASKED))
        log.warning("YOLO has no place for a second list of pictures: %s stay behind, and their masks. COCO has.", left)
        datasets = first
    renamed = []
    for dataset in datasets:
        split = dataset.split.removeprefix(VOC_MASKED)
        known = re.match(r"(trainval|train|minival|valid|val|test)(?![a-z])", split)
        if known is None and len(datasets) > 1:
            raise UsageError(
                f"{dataset.root}: YOLO's data.yaml has no key for the split {dataset.split!r}. Rename it to train, "
                "val or test, or convert its annotation file alone."
            )
        renamed.append(replace(dataset, split=known[1] if known else "train"))
        if renamed[-1].split != dataset.split:
            log.info("The split %r is called %r in YOLO's layout.", dataset.split, renamed[-1].split)
    if len({d.split for d in renamed}) < len(renamed):
        names = ", ".join(d.split for d in datasets)
        raise UsageError(f"{datasets[0].root}: two of the splits {names} would have one name in YOLO's layout.")
    return renamed
