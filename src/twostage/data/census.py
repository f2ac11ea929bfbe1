"""The notes of `check`: what is not wrong with a data set but useful to have seen before training."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, fault
from twostage.data.images import EXTENSIONS_OF, Header
from twostage.data.resize import Resize

PLAIN_MODES = {"RGB", "L", "P", "1"}
IMBALANCE = 20  # how many times more frequent the most frequent class is than the rarest


def class_notes(datasets: Sequence[Dataset]) -> Iterator[Fault]:
    """Names that look alike, classes without objects, gaps in category ids, classes far rarer than others."""
    if not datasets:
        return
    first = datasets[0]
    where = first.root
    alike = defaultdict(list)
    for name in first.names:
        alike["".join(c for c in name.casefold() if c.isalnum())].append(name)
    for names in alike.values():
        if len(names) > 1:
            message = f"the classes {', '.join(map(repr, names))} differ in spelling only"
            yield fault("similar-class-names", where, "", message, "Merge them if they are one class")
    ids = first.category_ids
    if len(ids) and (np.diff(ids) != 1).any():
        message = f"category ids run from {ids[0]} to {ids[-1]} for {len(ids)} classes"
        yield fault(
            "category-id-gaps", where, "", message, "Nothing to do: class ids are 0 to K - 1, files keep theirs"
        )
    counts = Counter(name for d in datasets for name in np.array(d.names, dtype=object)[d.labels])
    unused = [name for name in first.names if not counts[name]]
    if unused:
        message = f"{len(unused)} of {len(first.names)} classes have no objects in any split: {', '.join(unused)}"
        yield fault("unused-class", where, "", message, "Annotate some, or remove the classes")
    ranked = counts.most_common()
    if ranked and ranked[0][1] >= IMBALANCE * ranked[-1][1]:
        (most, many), (least, few) = ranked[0], ranked[-1]
        message = f"{most!r} has {many} objects, {least!r} {few}"
        yield fault("class-imbalance", where, "", message, "Expect a low AP of the rare class, or add images of it")


def image_notes(datasets: Sequence[Dataset], header_of: Callable[[str], Header]) -> Iterator[Fault]:
    """Wrong extensions, pixels that are converted, images that EXIF turns. `header_of` gives an image's header."""
    headers = {path: header_of(path) for d in datasets for path in (str(d.path(i)) for i in range(len(d)))}
    for path, header in headers.items():
        extension = Path(path).suffix.lower()
        if extension not in EXTENSIONS_OF.get(header.format, {extension}):
            message = f"holds {header.format} but is called {extension or 'nothing'}"
            yield fault("wrong-extension", path, "", message, "Rename it; the content decides how it is read")
    modes: dict[str, list[str]] = defaultdict(list)
    for path, header in headers.items():
        if header.mode not in PLAIN_MODES:
            modes[header.mode].append(path)
    for mode, paths in modes.items():
        done = {"CMYK": "converted without colour profile", "RGBA": "alpha dropped", "LA": "alpha dropped"}
        how = done.get(mode, "only the high byte is kept" if mode.startswith("I") else "converted to RGB")
        fix = "Nothing to do if their samples use all 16 bits" if mode.startswith("I") else "Nothing to do"
        yield fault("pixel-format", paths[0], "", f"images of mode {mode}: {len(paths)}; {how}", fix)
    turned = [path for path, header in headers.items() if header.orientation != 1]
    if turned:
        message = f"images turned by their EXIF tag: {len(turned)}; boxes are read on the upright image"
        yield fault("exif-turned", turned[0], "", message, "Nothing to do")


def object_notes(dataset: Dataset, resize: Resize) -> Iterator[Fault]:
    """Images without objects, crowds, difficult objects, boxes that are tiny, repeated or the whole image."""
    split, empty = f"split {dataset.split}", int((np.diff(dataset.offsets) == 0).sum())
    if empty:
        message = f"{empty} of {len(dataset)} images ({100 * empty / len(dataset):.0f} %) have no objects"
        yield fault("background-images", dataset.root, split, message, "Nothing to do if this is intended")
    for code, count in (("crowd-objects", dataset.crowd.sum()), ("difficult-objects", dataset.difficult.sum())):
        if count:
            message = f"{count} of {len(dataset.labels)} objects are left out of training and not counted in evaluation"
            yield fault(code, dataset.root, split, message, "Nothing to do")
    image = dataset.image_indices
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]
    whole = (sides >= dataset.sizes[image, ::-1] - 1).all(axis=1)
    resized = resized_sides(dataset, resize)
    tiny = (resized < 1).any(axis=1)
    at = f"at --size {resize.size} --max-size {resize.max_size}"
    for code, rows, message in (
        ("tiny-box", tiny, f"the box is less than a pixel wide or high {at}"),
        ("whole-image-box", whole & ~dataset.crowd, "the box is the whole image"),
        ("duplicate-box", _repeated(image, dataset), "another object of this class has the same box"),
    ):
        for row in np.flatnonzero(rows):
            box = ", ".join(f"{v:g}" for v in dataset.boxes[row].tolist())
            where = f"{dataset.names[dataset.labels[row]]} [{box}]"
            yield fault(code, dataset.file_name(int(image[row])), where, message, "Check it")


def _repeated(image: Int64[np.ndarray, " b"], dataset: Dataset) -> Bool[np.ndarray, " b"]:
    """Which objects repeat an earlier one of the same image, class and box."""
    keys = np.column_stack([image, dataset.labels, dataset.crowd, dataset.boxes.astype(np.float64)])
    _, first = np.unique(keys, axis=0, return_index=True)
    repeated = np.ones(len(keys), dtype=bool)
    repeated[first] = False
    return repeated


def resized_sides(dataset: Dataset, resize: Resize) -> Float64[np.ndarray, "b 2"]:
    """Width and height of every object once its image is resized."""
    shapes = np.array([resize.shape(int(h), int(w)) for h, w in dataset.sizes], dtype=np.float64).reshape(-1, 2)
    sides = (dataset.boxes[:, 2:] - dataset.boxes[:, :2]).astype(np.float64)
    return np.asarray(sides * (shapes / dataset.sizes)[dataset.image_indices, ::-1])
