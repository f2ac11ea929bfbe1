"""Converts a data set to another format; the source is never changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.data import Kind
from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, OnError, format_faults
from twostage.data.layout import Options, VocOffset
from twostage.data.recognise import find_layout, opener, writer_of
from twostage.data.stuff import maps_of
from twostage.data.write import Pictures, write_dataset
from twostage.folders import whole_folder


@dataclass(frozen=True)
class Written:
    """A data set that was written: its number of (images, objects) by split, and the faults of its source."""

    path: Path
    layout: str
    splits: dict[str, tuple[int, int]]
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, path: Path, layout: str, datasets: Sequence[Dataset], faults: Sequence[Fault] = ()) -> "Written":
        """The summary of what was written to `path`; `faults` are those besides the splits' own."""
        counts = {d.split: (len(d), len(d.labels)) for d in datasets}
        return cls(path, layout, counts, tuple(dict.fromkeys([*faults, *(f for d in datasets for f in d.faults)])))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        splits = {name: {"images": images, "objects": objects} for name, (images, objects) in self.splits.items()}
        return {"out": str(self.path), "layout": self.layout, "splits": splits}

    def format(self) -> str:
        """As text: the faults of the source, and what was written."""
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
    boxes: str = "auto",
    on_error: OnError = "default",
    pictures: Pictures = "copy",
) -> Written:
    """Write all splits of the data set at `path` into the new folder `out`, in the layout `to`.

    Boxes, classes, ids, `difficult`, `iscrowd`, areas and masks are kept as written, faulty boxes too; EXIF is applied.
    The result is read again and compared. Raises DataError for data that cannot be read, UsageError for a folder that
    is not empty.
    """
    options = Options(Path(images) if images else None, voc_offset, on_error, repair=False, boxes=boxes)
    with whole_folder(Path(out), "--out") as folder:
        layout = find_layout(path)
        open_split = opener(layout, options)
        datasets: Sequence[Dataset] = [open_split(split) for split in layout.splits]
        maps = maps_of(datasets)
        datasets = writer_of(to).splits_of(datasets)
        write_dataset(folder, datasets, to, pictures=pictures, maps=maps)
    return Written.of(Path(out), to, datasets)
