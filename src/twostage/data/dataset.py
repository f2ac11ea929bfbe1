"""A split of a data set as flat arrays, the same for all formats and for data made in memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from twostage.data import fields as other_fields
from twostage.data.faults import Fault, OnError
from twostage.data.fields import Fields
from twostage.data.flat import NO_MASK, NONE, FlatMasks, FlatStrings, Mask, box_mask, to_rle
from twostage.data.images import read_image
from twostage.errors import DataError, UsageError, nearest
from twostage.ops.run_lengths import RLE


class Objects(NamedTuple):
    """The objects of one image; views, so do not write to them. Boxes are xyxy on the upright original image."""

    boxes: Float32[np.ndarray, "g 4"]
    labels: Int64[np.ndarray, " g"]
    crowd: Bool[np.ndarray, " g"]
    difficult: Bool[np.ndarray, " g"]
    areas: Float64[np.ndarray, " g"]
    annotation_ids: Int64[np.ndarray, " g"]


@dataclass(frozen=True)
class Dataset:
    """M images with B objects of K classes; the objects of image i are rows `offsets[i]` to `offsets[i + 1]`.

    `sizes` are upright (height, width). `labels` are class ids 0..K-1 in the order of `names`; `category_ids` are those
    of the COCO file, or class id + 1, and negative for classes that only a detector has (`match_classes`). `image_ids`
    are those of the COCO file, or the 1-based position in sorted order.
    `areas` are COCO's `area` (of the mask, where there is one), else the box's. `faults` are the repairs made, what
    `on_error="skip"` left out, and notes. `pixels` are those of images in memory, None for an image in a file; () where
    all are in files. `fields` are those of the files that are not read here, None where there are none.
    """

    root: Path
    layout: str
    split: str
    names: tuple[str, ...]
    category_ids: Int64[np.ndarray, " k"]
    image_ids: Int64[np.ndarray, " m"]
    sizes: Int32[np.ndarray, "m 2"]
    offsets: Int64[np.ndarray, " m1"]
    boxes: Float32[np.ndarray, "b 4"]
    labels: Int64[np.ndarray, " b"]
    crowd: Bool[np.ndarray, " b"]
    difficult: Bool[np.ndarray, " b"]
    areas: Float64[np.ndarray, " b"]
    annotation_ids: Int64[np.ndarray, " b"]
    masks: FlatMasks | None
    files: FlatStrings
    paths: FlatStrings
    faults: tuple[Fault, ...]
    pixels: tuple[UInt8[np.ndarray, "_ _ 3"] | None, ...] = ()
    fields: Fields | None = None

    @classmethod
    def from_samples(
        cls,
        samples: Iterable[Sequence[Any]],
        names: Sequence[str],
        *,
        split: str = "train",
        on_error: OnError = "default",
    ) -> "Dataset":
        """A data set in memory from (image, boxes, labels) or (image, boxes, labels, masks).

        `image` is a path, a PIL image or an RGB array uint8 [h, w, 3]; arrays are kept, not copied, and files are read
        when they are needed. `boxes` are xyxy in pixels of the upright image, [n, 4]; `labels` are class ids 0..K-1 in
        the order of `names`, or names. `masks` are binary pixels [n, h, w], or a COCO segmentation (RLE or polygons)
        per box. Image ids and category ids count from 1. Raises UsageError for types, shapes and lengths that do not
        fit, FaultyDataError as `open_dataset` does, both with the number of the sample, counted from 0.
        """
        from twostage.data.memory import dataset_from_samples

        return dataset_from_samples(samples, names, split, on_error)

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """The image file; the name, such as `image_3`, of an image in memory."""
        return Path(self.paths[index])

    def source(self, index: int) -> Path | UInt8[np.ndarray, "h w 3"]:
        """What an image is read from: its file, or its pixels in memory. `Detector.predict` takes both."""
        pixels = self.pixels[index] if self.pixels else None
        return self.path(index) if pixels is None else pixels

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """An image as upright RGB; do not write to it.

        Raises DataError where its file cannot be read, or has another size than when the data set was opened.
        """
        source = self.source(index)
        pixels = read_image(source) if isinstance(source, Path) else source
        height, width = self.sizes[index].tolist()
        if pixels.shape[:2] != (height, width):
            now = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise DataError(
                f"{self.path(index)}: is {now} now, and was {width} x {height} when the data set was opened. Do not "
                "change images while they are read; restore this one."
            )
        return pixels

    def file_name(self, index: int) -> str:
        """The image's name in the data set (COCO's `file_name`); `image_3` for the fourth sample in memory."""
        return self.files[index]

    def objects(self, index: int) -> Objects:
        """The objects of one image."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Objects(*(getattr(self, name)[rows] for name in Objects._fields))

    @property
    def image_indices(self) -> Int64[np.ndarray, " b"]:
        """The index of the image of each object."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def unmasked(self) -> Bool[np.ndarray, " b"]:
        """Which objects have no mask; all False if the data set has no masks."""
        return np.zeros(len(self.labels), dtype=bool) if self.masks is None else self.masks.kinds == NONE

    def masks_of(self, index: int) -> list[RLE]:
        """Masks of an image's objects as COCO RLEs, {"size": [h, w], "counts": bytes}; [] if the data set has no masks.

        An object without a mask among others with masks gets its box as the mask.
        """
        if self.masks is None:
            return []
        height, width = self.sizes[index].tolist()
        rows = range(int(self.offsets[index]), int(self.offsets[index + 1]))
        masks = (
            self.masks[row] if self.masks.kinds[row] != NONE else box_mask(self.boxes[row].tolist()) for row in rows
        )
        return [to_rle(mask, height, width) for mask in masks]


def select_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with only these classes, in this order; all images are kept, objects of other classes are removed.

    Raises UsageError for an unknown class, or one named twice.
    """
    for name in names:
        if name not in dataset.names:
            raise UsageError(f"{dataset.root}: has no class {name!r}. {nearest(name, dataset.names)}")
    if len(set(names)) < len(names):
        raise UsageError(f"a class is named twice in {', '.join(names)}.")
    chosen = np.array([dataset.names.index(name) for name in names], dtype=np.int64)
    label_of = np.full(len(dataset.names), -1, dtype=np.int64)
    label_of[chosen] = np.arange(len(chosen))
    labels = label_of[dataset.labels]
    keep = labels >= 0
    return replace(
        dataset,
        names=tuple(names),
        category_ids=dataset.category_ids[chosen],
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])[dataset.offsets],
        fields=dataset.fields and dataset.fields.select(classes=chosen.tolist(), objects=np.flatnonzero(keep).tolist()),
        **{**_columns(dataset, np.flatnonzero(keep)), "labels": labels[keep]},
    )


def match_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with a detector's classes in the detector's order, matched by name; its objects stay the same.

    A class that it lacks becomes one without objects, and gets a negative category id. Raises UsageError with the
    classes that are not among `names`; `select_classes` leaves them out.
    """
    if other := [name for name in dataset.names if name not in names]:
        raise UsageError(
            f"{dataset.root}: the detector does not have its class{'es' * (len(other) > 1)} {', '.join(other)}. "
            f"{nearest(other[0], names)} Rename what is the same class in the data, or take a detector that has all "
            "classes of the data."
        )
    place = np.array([names.index(name) for name in dataset.names], dtype=np.int64)
    category_ids = -1 - np.arange(len(names), dtype=np.int64)
    category_ids[place] = dataset.category_ids
    texts = dict(zip(dataset.names, dataset.fields.classes, strict=True)) if dataset.fields else {}
    of_classes = tuple(texts.get(name, other_fields.NONE) for name in names)
    return replace(
        dataset,
        names=tuple(names),
        category_ids=category_ids,
        labels=place[dataset.labels],
        fields=dataset.fields and replace(dataset.fields, classes=of_classes),
    )


def without_objects(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """The data set without the objects of these rows; all images are kept."""
    keep = np.ones(len(dataset.labels), dtype=bool)
    keep[list(rows)] = False
    kept = np.flatnonzero(keep)
    return replace(
        dataset,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])[dataset.offsets],
        fields=dataset.fields and dataset.fields.select(objects=kept.tolist()),
        **_columns(dataset, kept),
    )


def select_images(dataset: Dataset, indices: Int64[np.ndarray, " i"]) -> Dataset:
    """The data set with only these images, in this order."""
    counts = np.diff(dataset.offsets)[indices]
    starts = dataset.offsets[indices]
    ends = np.cumsum(counts, dtype=np.int64)
    rows = np.repeat(starts - (ends - counts), counts) + np.arange(counts.sum())
    return replace(
        dataset,
        image_ids=dataset.image_ids[indices],
        sizes=dataset.sizes[indices],
        offsets=np.concatenate([np.zeros(1, np.int64), ends]),
        files=FlatStrings.of([dataset.files[int(i)] for i in indices]),
        paths=FlatStrings.of([dataset.paths[int(i)] for i in indices]),
        pixels=tuple(dataset.pixels[int(i)] for i in indices) if dataset.pixels else (),
        fields=dataset.fields and dataset.fields.select(images=indices.tolist(), objects=rows.tolist()),
        **_columns(dataset, rows),
    )


def _columns(dataset: Dataset, rows: Int64[np.ndarray, " r"]) -> dict[str, Any]:
    """The fields of a data set that have a row per object, for some of its objects."""
    masks = dataset.masks
    columns: dict[str, Any] = {name: getattr(dataset, name)[rows] for name in Objects._fields}
    return {**columns, "masks": None if masks is None else FlatMasks.of([masks[int(row)] for row in rows])}


def join(datasets: Sequence[Dataset]) -> Dataset:
    """All images of splits with the same classes, one after the other.

    If splits share image ids or annotation ids, all get new ones.
    """
    first, *_ = datasets
    sizes = np.cumsum([0, *(len(d.labels) for d in datasets)])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(d, name) for d in datasets]) for name in ("image_ids", "sizes", *Objects._fields)
    }
    for name in ("image_ids", "annotation_ids"):
        if len(np.unique(columns[name])) < len(columns[name]):
            columns[name] = np.arange(1, len(columns[name]) + 1)
    masks = None if all(d.masks is None for d in datasets) else [mask for d in datasets for mask in _all_masks(d)]
    return replace(
        first,
        offsets=np.concatenate(
            [first.offsets[:1], *(d.offsets[1:] + n for d, n in zip(datasets, sizes, strict=False))]
        ),
        masks=None if masks is None else FlatMasks.of(masks),
        files=FlatStrings.of([d.files[i] for d in datasets for i in range(len(d))]),
        paths=FlatStrings.of([d.paths[i] for d in datasets for i in range(len(d))]),
        pixels=tuple(p for d in datasets for p in d.pixels or (None,) * len(d))
        if any(d.pixels for d in datasets)
        else (),
        faults=tuple(dict.fromkeys(fault for d in datasets for fault in d.faults)),
        fields=other_fields.join(
            [d.fields for d in datasets], [(len(d.names), len(d), len(d.labels)) for d in datasets]
        ),
        **columns,
    )


def _all_masks(dataset: Dataset) -> Iterator[Mask]:
    """The mask of every object, NO_MASK where there is none."""
    for row in range(len(dataset.labels)):
        yield NO_MASK if dataset.masks is None else dataset.masks[row]


def difference(given: Dataset, other: Dataset, order: Sequence[int]) -> str:
    """The first difference of `other`, with its images in this `order`, in words; "" if there is none.

    File names are not compared.
    """
    if given.names != other.names or (given.category_ids != other.category_ids).any():
        return f"the classes {list(zip(given.category_ids.tolist(), given.names, strict=True))} are changed"
    same = select_images(other, np.array(order, dtype=np.int64))
    for name in ("image_ids", "sizes", "offsets"):
        if not np.array_equal(getattr(given, name), getattr(same, name)):
            return f"the {name.replace('_', ' ')} are changed"
    for name in Objects._fields:
        one, two = getattr(given, name), getattr(same, name)
        changed = np.flatnonzero((one != two).any(axis=tuple(range(1, one.ndim))))
        if name == "areas":
            changed = np.flatnonzero(~np.isclose(one, two, rtol=1e-6))  # of a box, computed from rounded sides
        if len(changed):
            where = f"{given.file_name(int(given.image_indices[changed[0]]))}, {len(changed)} objects in all"
            return f"the {name.replace('_', ' ')} are changed ({where})"
    if any((a.kind, a.data) != (b.kind, b.data) for a, b in zip(_all_masks(given), _all_masks(same), strict=True)):
        return "the masks are lost" if same.masks is None else "masks are changed"
    return other_fields.difference(given.fields, same.fields, [given.file_name(index) for index in range(len(given))])
