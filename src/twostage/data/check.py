"""All faults and oddities of a data set in one report; nothing is changed.

Annotations are read as for training, so the report has the faults that training would report. Only the headers and the
last bytes of images are read; `deep` decodes them all.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from twostage.data.census import class_notes, image_notes, object_notes
from twostage.data.dataset import Dataset
from twostage.data.duplicates import duplicate_faults
from twostage.data.faults import Fault, FaultyDataError, fault, format_faults
from twostage.data.images import probe, read_image
from twostage.data.layout import Options, VocOffset
from twostage.data.mask_check import mask_faults
from twostage.data.recognise import check_same_classes, default_splits, find_layout, usable_splits
from twostage.data.resize import Resize
from twostage.data.stuff import stuff_faults
from twostage.data.unused import unused_files
from twostage.errors import DataError


@dataclass(frozen=True)
class Report:
    """The findings of `check`: the content of each split after repairs by its name, and all faults."""

    path: Path
    layout: str
    splits: dict[str, dict[str, Any]]
    faults: tuple[Fault, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether training on boxes can start without repairs; notes do not count, and masks may still be missing."""
        return all(f.severity == "note" for f in self.faults)

    @property
    def counts(self) -> dict[str, int]:
        """How many faults there are of each severity."""
        counts = Counter(f.severity for f in self.faults)
        return {severity: counts[severity] for severity in ("error", "repair", "note")}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "path": str(self.path),
            "layout": self.layout,
            "ok": self.ok,
            "counts": self.counts,
            "splits": self.splits,
            "faults": [f._asdict() for f in self.faults],
            "seconds": round(self.seconds, 3),
        }

    def format(self, *, most: int = 50) -> str:
        """The report as text: the splits, the faults (the first `most` of them), the totals."""
        lines = [f"{self.path}: {self.layout}"]
        for split, held in self.splits.items():
            classes = ", ".join(f"{name} {count}" for name, count in held["classes"].items())
            images = f"{held['images']} images ({held['without_objects']} without objects)"
            lines.append(f"  {split}: {images}, {held['objects']} objects")
            lines.append(f"    {classes}" if len(classes) <= 400 else f"    {len(held['classes'])} classes")
        if self.faults:
            lines.append(format_faults(self.faults, most=most))
        summary = ", ".join(f"{n} {severity}{'s' if n != 1 else ''}" for severity, n in self.counts.items())
        verdict = "Nothing wrong" if self.ok else "Faults found"
        return "\n".join([*lines, f"{verdict}: {summary}, in {self.seconds:.1f} s."])


def check(
    path: str | Path,
    *,
    images: str | Path | None = None,
    voc_offset: VocOffset = "auto",
    boxes: str = "auto",
    resize: Resize | None = None,
    deep: bool = False,
) -> Report:
    """All faults of all splits of a data set. `resize` is that of the training, to find objects that become tiny.

    Raises DataError if no data set is recognised at all.
    """
    started = time.perf_counter()
    path = Path(path)
    header_of = cache(probe)
    faults: list[Fault] = []
    try:
        layout = find_layout(path)
    except FaultyDataError as error:
        return Report(path, "not readable", {}, error.faults, time.perf_counter() - started)
    options = Options(Path(images) if images else None, voc_offset, "skip", boxes=boxes, header_of=header_of)
    datasets = []
    for dataset in usable_splits(layout, options, faults):
        faults += dataset.faults
        datasets.append(dataset)
    faults += _empty(datasets, default_splits(layout)[0])
    faults += _differing_classes(datasets)
    faults += _differing_masks(datasets)
    faults += class_notes(datasets)
    faults += image_notes(datasets, header_of)
    faults += duplicate_faults(datasets)
    if path.is_dir():  # of a file that is named, the others are left out on purpose
        faults += unused_files(datasets, layout)
    for dataset in datasets:
        faults += object_notes(dataset, resize or Resize())
        faults += mask_faults(dataset)
        faults += stuff_faults(dataset)
    if deep:
        faults += _undecodable(datasets)
    summaries = {dataset.split: _summary(dataset) for dataset in datasets}
    # Splits may share images (trainval and train): equal faults are listed once.
    return Report(path, str(layout), summaries, tuple(dict.fromkeys(faults)), time.perf_counter() - started)


def _differing_classes(datasets: Sequence[Dataset]) -> Iterator[Fault]:
    for dataset in datasets[1:]:
        try:
            check_same_classes(datasets[0], dataset)
        except DataError as error:
            yield fault("classes-differ", dataset.root, dataset.split, str(error).rstrip("."), "Make them equal")


def _differing_masks(datasets: Sequence[Dataset]) -> Iterator[Fault]:
    """Splits without masks beside splits with masks; the reader reports splits with some masks."""
    masked = [dataset.split for dataset in datasets if dataset.masks is not None]
    for dataset in datasets:
        reported = any(f.code == "missing-mask" for f in dataset.faults)
        if masked and dataset.masks is None and not reported and not (dataset.crowd | dataset.difficult).all():
            message = f"no object of this split has a mask, those of {', '.join(masked)} have"
            yield fault("missing-mask", dataset.split, "", message, "Add the masks, or train a model without them")


def _empty(datasets: Sequence[Dataset], train: str | None) -> Iterator[Fault]:
    for dataset in datasets:
        if not len(dataset):
            yield fault("empty-split", dataset.root, dataset.split, "the split has no images", "Add some, or remove it")
        elif dataset.split == train and (dataset.crowd | dataset.difficult).all():
            message = "the training split has no object to train on"
            yield fault("empty-split", dataset.root, dataset.split, message, "Annotate its images")


def _undecodable(datasets: Sequence[Dataset]) -> Iterator[Fault]:
    """Decodes every image once, on all cores: Pillow's decoders release Python's lock."""
    paths = sorted({str(d.path(i)) for d in datasets for i in range(len(d))})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, message in zip(paths, pool.map(_decode, paths), strict=True):
            if message:
                shown = message.removeprefix(f"{path}: ").rstrip(".")
                fix = "Replace the image, or remove it from the data set"
                yield fault("unreadable-image", path, "", shown, fix)


def _decode(path: str) -> str:
    try:
        read_image(path)
    except DataError as error:
        return str(error)
    return ""


def _summary(dataset: Dataset) -> dict[str, Any]:
    counts = np.bincount(dataset.labels, minlength=len(dataset.names)).tolist()
    return {
        "images": len(dataset),
        "without_objects": int((np.diff(dataset.offsets) == 0).sum()),
        "objects": len(dataset.labels),
        "crowd": int(dataset.crowd.sum()),
        "difficult": int(dataset.difficult.sum()),
        "classes": dict(zip(dataset.names, counts, strict=True)),
    }
