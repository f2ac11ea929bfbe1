"""`data split`: the images of a data set in new splits, with the same share of every class in each.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data", section
3.2): images of the rarest class are assigned first, each to the split that still needs most of that class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from twostage.data import Kind
from twostage.data.convert import Written
from twostage.data.dataset import Dataset, join, select_images
from twostage.data.duplicates import same_images
from twostage.data.layout import Options, VocOffset
from twostage.data.recognise import check_same_classes, find_layout, opener, writer_of
from twostage.data.stuff import maps_of
from twostage.data.write import Pictures, write_dataset
from twostage.errors import DataError, UsageError
from twostage.folders import whole_folder


def split(
    path: str | Path,
    out: str | Path,
    parts: Mapping[str, float],
    *,
    to: Kind | None = None,
    seed: int = 0,
    images: str | Path | None = None,
    voc_offset: VocOffset = "auto",
    boxes: str = "auto",
    pictures: Pictures = "copy",
) -> Written:
    """Split all images of the data set at `path` into `parts` ({"train": 0.8, "val": 0.2}) of a new one at `out`.

    Images of equal content go to the same split. The same seed and data give the same splits on every machine. `to` is
    the format to write, by default that of the source. Raises UsageError for shares that do not add up to 1, DataError
    if a split would be empty.
    """
    _require_shares(parts)
    options = Options(Path(images) if images else None, voc_offset, repair=False, boxes=boxes)
    with whole_folder(Path(out), "--out") as folder:
        layout = find_layout(path)
        writer_of(to or layout.kind)
        open_split = opener(layout, options)
        datasets = [open_split(name) for name in layout.splits]
        for other in datasets[1:]:
            check_same_classes(datasets[0], other)
        whole, groups = pool(datasets)
        sides = stratify(_class_counts(whole, groups), list(parts.values()), seed)
        written = []
        for number, name in enumerate(parts):
            chosen = [index for group, side in zip(groups, sides, strict=True) if side == number for index in group]
            if not chosen:
                raise DataError(
                    f"{path}: its {len(groups)} different images leave none for {name!r}. Give it a larger share."
                )
            written.append(replace(select_images(whole, np.array(sorted(chosen))), split=name))
        write_dataset(folder, written, to or layout.kind, pictures=pictures, maps=maps_of(datasets))
    return Written.of(Path(out), to or layout.kind, written)


def pool(datasets: Sequence[Dataset]) -> tuple[Dataset, list[list[int]]]:
    """All images of some splits, each file once, and groups of indices of equal content.

    If an image is in two splits, the one with masks is used: VOC lists images with masks a second time.
    """
    seen: set[str] = set()
    fresh = []
    for dataset in sorted(datasets, key=lambda dataset: dataset.masks is None):
        indices = [index for index in range(len(dataset)) if dataset.paths[index] not in seen]
        seen.update(dataset.paths[index] for index in indices)
        fresh.append(select_images(dataset, np.array(indices, dtype=np.int64)))
    whole = join(fresh)
    return whole, sorted(sorted(index for _, index in places) for places in same_images([whole]))


def stratify(counts: Float64[np.ndarray, "g k1"], shares: Sequence[float], seed: int) -> Int64[np.ndarray, " g"]:
    """The split of each of g groups, from their number of objects per class and, in the last column, of images."""
    lacking = np.array(shares)[:, None] * counts.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(counts))
    sides = np.full(len(counts), -1, dtype=np.int64)
    waiting = np.ones(len(counts), dtype=bool)
    while waiting.any():
        left = (counts[waiting] > 0).sum(axis=0)
        column = int(np.where(left > 0, left, len(counts) + 1).argmin())
        for group in order[(waiting & (counts[:, column] > 0))[order]]:
            most = np.flatnonzero(lacking[:, column] == lacking[:, column].max())
            side = most[lacking[most, -1].argmax()]
            sides[group] = side
            lacking[side] -= counts[group]
            waiting[group] = False
    return sides


def _class_counts(dataset: Dataset, groups: Sequence[Sequence[int]]) -> Float64[np.ndarray, "g k1"]:
    counts = np.zeros((len(groups), len(dataset.names) + 1))
    for number, group in enumerate(groups):
        for index in group:
            counts[number, :-1] += np.bincount(dataset.objects(index).labels, minlength=len(dataset.names))
        counts[number, -1] = len(group)
    return counts


def _require_shares(parts: Mapping[str, float]) -> None:
    for name, share in parts.items():
        if not share > 0:
            raise UsageError(f"the share of {name!r} is {share:g}, and must be above 0")
    if abs(sum(parts.values()) - 1) > 1e-6:
        total = " + ".join(f"{share:g}" for share in parts.values())
        raise UsageError(f"the shares must add up to 1, and {total} is {sum(parts.values()):g}")
