"""Recognises the format of a data set, lists its splits and opens them."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_args

from twostage.data import FORMATS as NAMES
from twostage.data import Kind, foreign
from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, FaultyDataError, OnError
from twostage.data.files import exists
from twostage.data.layout import Format, Layout, OpenSplit, Options, VocOffset, Writer
from twostage.errors import DataError, UsageError, nearest

log = logging.getLogger("twostage.data")

FORMATS: dict[str, Format] = {name: import_module(f"twostage.data.{name}").FORMAT for name in NAMES}
LOOKED_FOR = "\n".join(f"{name.upper() + ':':<8} {one.description}" for name, one in FORMATS.items())
TRAIN_NAMES = ("train", "trainval")
VAL_NAMES = ("val", "valid", "validation", "test")
_EXACT = ("labelme", "via")  # whose boxes have one notation


def writer_of(name: str) -> Writer:
    """How the format of this name is written. Raises UsageError for an unknown one, and one that is only read."""
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r}. {nearest(name, get_args(Kind))}")
    writer = FORMATS[name].writer
    if writer is None:
        others = ", ".join(get_args(Kind))
        raise UsageError(
            f"{name} is read, but not written: choose one of {others} with --to, or use data convert first."
        )
    return writer


def open_dataset(
    path: str | Path,
    *,
    split: str,
    images: str | Path | None = None,
    voc_offset: VocOffset = "auto",
    on_error: OnError = "default",
    require_images: bool = True,
    repair: bool = True,
    boxes: str = "auto",
) -> Dataset:
    """One split of the data set at `path`, in any format; `opener` opens several and reads once what they share.

    `images` is the folder of the images if they are not beside the annotations. Errors in the data raise DataError with
    a list of all of them; repairs are made and listed in `faults`. With `on_error="fail"` repairs are errors too, with
    "skip" faulty images and objects are left out. Without `require_images` image files may be missing if the
    annotations state their sizes. Without `repair`, boxes over the border or without area stay as they are written, for
    scoring as the official tools do. `boxes` is how they are written (`data.notation`): `format` as the format has
    them, `auto` the same, and an error where all of them show another notation. Raises UsageError for an unknown split.
    """
    folder = Path(images) if images is not None else None
    options = Options(folder, voc_offset, on_error, require_images, repair, boxes)
    return opener(find_layout(path), options)(split)


def opener(layout: Layout, options: Options) -> OpenSplit:
    """A function that opens splits by name, reading once what they share. It raises as `open_dataset` does."""
    if options.images is not None and not options.images.is_dir():
        raise DataError(f"{options.images}: is not a folder. --images must be the folder of the images.")
    _require_used(layout, options)
    open_split = layout.format.open(layout, options)

    def open_known(split: str) -> Dataset:
        require_split(layout, split)
        return open_split(split)

    return open_known


def require_split(layout: Layout, split: str) -> None:
    """Raises UsageError where the layout has no split of that name."""
    if split not in layout.sources:
        raise UsageError(f"{layout.root}: has no split {split!r}. {nearest(split, layout.splits)}")


def _require_used(layout: Layout, options: Options) -> None:
    """Raises UsageError for options that have no meaning for this format."""
    if options.voc_offset != "auto" and layout.kind != "voc":
        raise UsageError(f"voc_offset is {options.voc_offset}, and {layout.root} is {layout.kind}: leave it out.")
    if options.boxes not in ("auto", "format"):
        if layout.kind in _EXACT:
            raise UsageError(f"boxes is {options.boxes}, and {layout.kind} has one notation: leave it out.")
        if options.voc_offset != "auto":
            raise UsageError("boxes says how coordinates are written, and voc_offset counts pixels of VOC: give one.")


def usable_splits(layout: Layout, options: Options, faults: list[Fault]) -> Iterator[Dataset]:
    """The splits that can be opened; the faults of the others are added to `faults`."""
    open_split = opener(layout, options)
    for split in layout.splits:
        try:
            yield open_split(split)
        except FaultyDataError as error:
            faults += error.faults


def default_splits(layout: Layout) -> tuple[str | None, str | None]:
    """The splits to train and to validate on: `train` (else `trainval`) and `val` (else `valid`, `test`), or None.

    A year or another suffix may follow (`train2017`). A single split of any other name is the one to train on.
    """
    train, val = (_first(layout, names) for names in (TRAIN_NAMES, VAL_NAMES))
    if train is None and val is None and len(layout.sources) == 1:
        train = layout.splits[0]
    return train, val


def evaluation_split(layout: Layout) -> str:
    """The split to evaluate on: the default for validation, else the only one. Raises UsageError without either."""
    _, val = default_splits(layout)
    if val is not None:
        return val
    if len(layout.sources) == 1:
        return layout.splits[0]
    held = ", ".join(layout.splits)
    raise UsageError(f"{layout.root}: which split? None is called {', '.join(VAL_NAMES)}. It has: {held}.")


def check_same_classes(train: Dataset, val: Dataset) -> None:
    """Raises DataError if two splits do not have the same classes in the same order."""
    if train.names == val.names:
        return
    pairs = ((train, val), (val, train))
    only = [f"{a.split!r} has {sorted(own)}" for a, b in pairs if (own := set(a.names) - set(b.names))]
    difference = ", ".join(only) or "the order differs"
    raise DataError(
        f"{train.root}: the splits {train.split!r} and {val.split!r} differ in their classes: {difference}. "
        "List the same categories, with the same ids, in both."
    )


def find_layout(path: str | Path) -> Layout:
    """The layout of a data set. Raises DataError with what was looked for and what was found."""
    path = Path(path)
    if not exists(path):
        raise DataError(f"{path}: does not exist. Name the folder of a data set, a COCO JSON file, or a data.yaml.")
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: neither a file nor a folder. Name the folder of a data set, or a file of one.")
    try:
        layout = _detect(path)
        layout, way_round = _without_foreign(path, layout)
    except PermissionError as error:
        raise DataError(f"{error.filename}: no permission to read it. Change its mode or its owner.") from error
    if way_round:
        raise DataError(way_round)
    if layout is None and path.is_file():
        raise DataError(f"{path}: is not a data set. Looked for:\n{LOOKED_FOR}")
    if layout is None:
        held = ", ".join(sorted(f"{p.name}/" if p.is_dir() else p.name for p in itertools.islice(path.iterdir(), 8)))
        nested = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".") and _inside(p)]
        hint = f" Perhaps you mean {nested[0]}." if nested else ""
        raise DataError(
            f"{path}: no data set recognised.{hint} It holds: {held or 'nothing'}. Looked for:\n{LOOKED_FOR}"
        )
    return layout


def _without_foreign(path: Path, layout: Layout | None) -> tuple[Layout | None, str]:
    """The layout without files of tools that are not read; if nothing is left, what they are and the way round."""
    if layout is None:
        advice = foreign.advice(path)
        return None, f"{path}: {advice}" if advice else ""
    files = {split: place for split, place in layout.sources.items() if place.is_file()}
    found = {split: advice for split, place in files.items() if (advice := foreign.advice(place))}
    if not found:
        return layout, ""
    first = next(iter(found))
    message = f"{files[first]}: {found[first]}"
    if len(found) == len(layout.sources):
        return None, message
    log.warning("Left out: %s", message)
    return replace(layout, sources={s: place for s, place in layout.sources.items() if s not in found}), ""


def _detect(path: Path) -> Layout | None:
    forms = list(FORMATS.values())
    if path.is_file():  # any JSON may be COCO's
        forms.sort(key=lambda one: one.name == "coco")
    return next((found for one in forms if (found := one.detect(path))), None)


def _inside(path: Path) -> bool:
    try:
        return _detect(path) is not None
    except (PermissionError, DataError):
        return False


def _first(layout: Layout, names: tuple[str, ...]) -> str | None:
    for name in names:
        if name in layout.sources:
            return name
    for name in names:
        longer = [s for s in layout.splits if s.startswith(name) and not s[len(name)].isalpha()]
        if len(longer) == 1:
            return longer[0]
    return None
