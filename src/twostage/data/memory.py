"""Data sets made from arrays, images and lists in memory, without annotation files."""

import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from twostage.data.builder import Builder
from twostage.data.dataset import Dataset
from twostage.data.faults import OnError
from twostage.data.files import display_path
from twostage.data.flat import NO_MASK, Mask, pixel_mask
from twostage.data.images import Header, probe, read_image
from twostage.data.layout import Options
from twostage.data.segmentation import SegmentationError, read_segmentation
from twostage.errors import UsageError, brief, nearest

ROOT = Path("in memory")  # of data sets without files; messages begin with it


class _Sample(NamedTuple):
    """One checked sample; `path` is the image file, or the name of an image in memory."""

    path: str
    pixels: UInt8[np.ndarray, "h w 3"] | None
    boxes: Float64[np.ndarray, "g 4"]
    labels: Sequence[Any]
    masks: Sequence[Any] | None


def dataset_from_samples(
    samples: Iterable[Sequence[Any]], names: Sequence[str], split: str, on_error: OnError
) -> Dataset:
    """The data set of `Dataset.from_samples`, which documents the arguments and errors."""
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"names is {brief(names)}; it must list the class names in the order of their ids.")
    if len(set(names)) < len(names):
        raise UsageError(f"names lists a class twice: {', '.join(names)}. Give every class its own name.")
    checked = [_check(index, sample) for index, sample in enumerate(samples)]
    if not checked:
        raise UsageError("there are no samples. Give at least one (image, boxes, labels).")
    pixels = {sample.path: sample.pixels for sample in checked if sample.pixels is not None}
    folders = {str(Path(sample.path).parent) for sample in checked if sample.pixels is None}
    root = _common(folders) if folders else ROOT

    def header_of(path: str) -> Header:
        if path not in pixels:
            return probe(path)
        height, width, _ = pixels[path].shape
        return Header(height, width, 1, "PNG", "RGB")

    builder = Builder(
        root=root,
        layout="memory",
        split=split,
        names=tuple(names),
        category_ids=range(1, len(names) + 1),
        place=lambda image, row: (f"sample {image}", f"object {row}"),
        options=Options(on_error=on_error, header_of=header_of),
    )
    for index, sample in enumerate(checked):
        _add(builder, index, sample)
    dataset = builder.build()
    return replace(dataset, pixels=tuple(pixels.get(dataset.paths[i]) for i in range(len(dataset))))


def _common(folders: set[str]) -> Path:
    """The folder that they are all in."""
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:  # of several drives of Windows
        return ROOT


def _check(index: int, sample: Any) -> _Sample:
    """The parts of a sample. Raises UsageError for wrong types, shapes and lengths."""
    if not isinstance(sample, tuple | list) or len(sample) not in (3, 4):
        what = (
            f"{type(sample).__name__} of {len(sample)}" if isinstance(sample, tuple | list) else type(sample).__name__
        )
        raise UsageError(f"sample {index} is a {what}; it must be (image, boxes, labels) or (..., masks).")
    image, boxes, labels = sample[:3]
    masks = sample[3] if len(sample) == 4 else None
    rows = _array(boxes)
    if rows is not None and not rows.size:
        rows = np.zeros((0, 4))
    if rows is None or rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "fiu":
        raise UsageError(f"sample {index}: boxes are {_described(boxes)}; give numbers xyxy in pixels, [n, 4].")
    try:
        ids = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        given = None if masks is None else list(masks)
    except TypeError:
        raise UsageError(f"sample {index}: labels and masks must be lists or arrays, one entry per box.") from None
    for what, entries in (("labels", ids), ("masks", given)):
        if entries is not None and (not isinstance(entries, list) or len(entries) != len(rows)):
            count = len(entries) if isinstance(entries, list) else "no list of"
            raise UsageError(f"sample {index}: {len(rows)} boxes and {count} {what}. Give one for every box.")
    path, pixels = _image(index, image)
    return _Sample(path, pixels, rows.astype(np.float64), ids, given)


def _image(index: int, image: Any) -> tuple[str, UInt8[np.ndarray, "h w 3"] | None]:
    """The file of an image, or a name for it and its pixels."""
    if isinstance(image, str | Path):
        return str(Path(image).absolute()), None
    name = f"image_{index}"
    if isinstance(image, Image.Image):
        return name, read_image(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        fix = "Give a path, a PIL image, or an RGB array uint8 [h, w, 3]"
        if tuple(getattr(image, "shape", ()))[:1] == (3,):
            fix += "; move the channels last with numpy.transpose(1, 2, 0)"
        raise UsageError(f"sample {index}: the image is {_described(image)}. {fix}.")
    if not image.size:
        raise UsageError(f"sample {index}: the image {_described(image)} has no pixels. Leave it out.")
    # Batches are made from it by torch, which reads writable memory with the channels of a pixel side by side.
    return name, np.require(image, requirements=("C", "W"))


def _add(builder: Builder, index: int, sample: _Sample) -> None:
    builder.add_image(display_path(sample.path, builder.root), sample.path, index + 1)
    size = (0, 0) if sample.pixels is None else (sample.pixels.shape[0], sample.pixels.shape[1])
    for row, (box, label) in enumerate(zip(sample.boxes.tolist(), sample.labels, strict=True)):
        where = f"sample {index}", f"object {row}"
        try:
            number = _label(label, builder.names)
        except ValueError as error:
            builder.report("unknown-class", *where, str(error), "Correct the label, or add the class to names")
            continue
        try:
            mask = NO_MASK if sample.masks is None else _mask(sample.masks[row], size)
        except SegmentationError as error:
            builder.report("broken-mask", *where, str(error), error.fix)
            continue
        builder.add_object(
            index,
            (box[0], box[1], box[2], box[3]),
            number,
            source=row,
            annotation_id=len(builder.objects) + 1,
            mask=mask,
        )


def _label(label: Any, names: Sequence[str]) -> int:
    """The class id of an id or a name. Raises ValueError."""
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f"there is no class {label!r}. {nearest(label, names)}".rstrip("."))
        return names.index(label)
    try:
        number = -1 if isinstance(label, bool) else operator.index(label)
    except TypeError:
        number = -1
    if not 0 <= number < len(names):
        raise ValueError(f"the label {label!r} is neither a class name nor a whole number from 0 to {len(names) - 1}")
    return number


def _mask(mask: Any, size: tuple[int, int]) -> Mask:
    """A mask from binary pixels [h, w], or from a segmentation as COCO has it. Raises SegmentationError."""
    if mask is None or isinstance(mask, dict | list):
        return read_segmentation(mask, size)
    pixels = _array(mask)
    if pixels is None or pixels.ndim != 2 or pixels.dtype.kind not in "biuf":
        raise SegmentationError(
            f"the mask is {_described(mask)}", "Give binary pixels [h, w], or COCO's RLE or polygons"
        )
    if pixels.dtype.kind == "f" and not np.isin(pixels, (0, 1)).all():
        raise SegmentationError(
            f"the mask is {_described(mask)} with values other than 0 and 1", "Give binary pixels: mask > 0.5"
        )
    return pixel_mask(pixels)


def _array(value: Any) -> np.ndarray | None:
    """A list, an array or a tensor on the CPU as an array; None for what cannot be one."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _described(value: Any) -> str:
    shape, kind = getattr(value, "shape", None), getattr(value, "dtype", None)
    return brief(value) if shape is None else f"{type(value).__name__} {kind} {list(shape)}"
