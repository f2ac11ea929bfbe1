"""Which layout a folder or file has, which splits it offers, and opening one of them."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from twostage.data.coco import read_coco
from twostage.data.dataset import Dataset
from twostage.data.duplicates import VOC_MASKED
from twostage.data.faults import OnError
from twostage.data.files import exists
from twostage.data.images import EXTENSIONS, Header
from twostage.data.probe import probe
from twostage.data.voc import VocFiles, VocFolders, VocOffset, read_annotations, read_voc
from twostage.data.voc_masks import FOLDER as SEGMENTATIONS
from twostage.data.yolo import YAML_NAMES, read_yolo, yolo_splits
from twostage.errors import DataError, UsageError, nearest

TRAIN_NAMES = ("train", "trainval")
VAL_NAMES = ("val", "valid", "test")
LOOKED_FOR = """\
VOC:  JPEGImages/, Annotations/ and ImageSets/Main/<split>.txt, or pictures and XML side by side, one folder per split
COCO: a JSON file; annotations/instances_<split>.json with <split>/; or one folder per split with a JSON in it
YOLO: data.yaml"""


@dataclass(frozen=True)
class Layout:
    """What was recognised; `sources` holds the JSON (COCO), list or folder (VOC) or data.yaml (YOLO) of each split."""

    kind: Literal["voc", "coco", "yolo"]
    root: Path
    sources: Mapping[str, Path]
    voc: VocFolders | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted(self.sources))

    def __str__(self) -> str:
        return f"{self.kind.upper()} layout in {self.root} with the splits {', '.join(self.splits)}"


def open_dataset(
    path: str | Path,
    *,
    split: str,
    images: str | Path | None = None,
    voc_offset: VocOffset = "auto",
    on_error: OnError = "default",
    require_images: bool = True,
    mend: bool = True,
) -> Dataset:
    """One split of the data set at `path`, whatever its layout; `opener` opens several and reads once what they share.

    `images` names the folder of the pictures where they are not beside the annotations. Errors in the data raise
    DataError with all of them, repairs are made and stand in `faults`; `on_error` "fail" takes repairs for errors too,
    "skip" leaves out what is wrong. Without `require_images` pictures may be missing as long as the annotations tell
    their sizes. Without `mend`, boxes that cannot be learned (over the border, without area) stay as they are written,
    for scoring as the official tools do. Raises UsageError for a split that is not there.
    """
    options = Options(Path(images) if images is not None else None, voc_offset, on_error, require_images, mend)
    return opener(find_layout(path), options)(split)


class Options(NamedTuple):
    """How a data set is opened; the fields are those of `open_dataset`."""

    images: Path | None = None
    voc_offset: VocOffset = "auto"
    on_error: OnError = "default"
    require_images: bool = True
    mend: bool = True


def opener(layout: Layout, options: Options, look: Callable[[str], Header] = probe) -> Callable[[str], Dataset]:
    """A function that opens one split after the other, reading once what they share; `look` reads a picture's header.

    It raises as `open_dataset` does.
    """
    if options.images is not None and not options.images.is_dir():
        raise DataError(f"{options.images}: is not a folder. --images names the folder that holds the pictures.")
    files = read_annotations(layout.voc, layout.root) if layout.voc else {}

    def open_split(split: str) -> Dataset:
        if split not in layout.sources:
            raise UsageError(f"{layout.root}: has no split {split!r}. {nearest(split, layout.splits)}")
        return _open(layout, split, files, options, look)

    return open_split


def _open(layout: Layout, split: str, files: VocFiles, options: Options, look: Callable[[str], Header]) -> Dataset:
    source, images, on_error, mend = layout.sources[split], options.images, options.on_error, options.mend
    if layout.kind == "yolo":
        return read_yolo(source, split=split, images=images, on_error=on_error, mend=mend, look=look)
    if layout.voc is None:
        return read_coco(
            source,
            root=layout.root,
            split=split,
            folders=[images] if images else _picture_folders(source, layout.root, split),
            on_error=on_error,
            mend=mend,
            require_images=options.require_images,
            look=look,
        )
    voc = layout.voc
    return read_voc(
        voc._replace(images=dict.fromkeys(voc.images, images)) if images else voc,
        files,
        root=layout.root,
        split=split,
        offset=options.voc_offset,
        on_error=on_error,
        mend=mend,
        require_images=options.require_images,
        look=look,
    )


def default_splits(layout: Layout) -> tuple[str | None, str | None]:
    """The splits to train and to validate on: `train` (else `trainval`) and `val` (else `valid`, `test`), or None.

    A year or another suffix may follow (`train2017`). A single split of any other name is the one to train on.
    """
    train, val = (_first(layout, names) for names in (TRAIN_NAMES, VAL_NAMES))
    if train is None and val is None and len(layout.sources) == 1:
        train = layout.splits[0]
    return train, val


def evaluation_split(layout: Layout) -> str:
    """The split to evaluate on: the default to validate on, else the only one. Raises UsageError without either."""
    _, val = default_splits(layout)
    if val is not None:
        return val
    if len(layout.sources) == 1:
        return layout.splits[0]
    raise UsageError(f"{layout.root}: which split? None is called {', '.join(VAL_NAMES)}. It has: {_joined(layout)}.")


def check_same_classes(train: Dataset, val: Dataset) -> None:
    """Raises DataError where two splits of a data set do not have the same classes in the same order."""
    if train.names == val.names:
        return
    only = [f"{split!r} has {sorted(set(a) - set(b))}" for split, a, b in (
        (train.split, train.names, val.names), (val.split, val.names, train.names)
    ) if set(a) - set(b)]  # fmt: skip
    difference = ", ".join(only) or "they stand in another order"
    raise DataError(
        f"{train.root}: the splits {train.split!r} and {val.split!r} differ in their classes: {difference}. "
        "List the same categories, with the same ids, in both."
    )


def find_layout(path: str | Path) -> Layout:
    """The layout of a data set. Raises DataError that says what was looked for and what was found."""
    path = Path(path)
    if not exists(path):
        raise DataError(f"{path}: does not exist. Name the folder of a data set, a COCO JSON file, or a data.yaml.")
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: neither a file nor a folder. Name the folder of a data set, or a file of one.")
    try:
        found = _of_file(path) if path.is_file() else _of_folder(path)
    except PermissionError as error:
        raise DataError(f"{error.filename}: no permission to read it. Change its mode or its owner.") from error
    if found is None:
        held = ", ".join(sorted(f"{p.name}/" if p.is_dir() else p.name for p in itertools.islice(path.iterdir(), 8)))
        nested = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".") and _inside(p)]
        hint = f" Perhaps you mean {nested[0]}." if nested else ""
        raise DataError(
            f"{path}: no data set recognised.{hint} It holds: {held or 'nothing'}. Looked for:\n{LOOKED_FOR}"
        )
    return found


def _inside(path: Path) -> bool:
    try:
        return _of_folder(path) is not None
    except (PermissionError, DataError):
        return False


def _of_folder(path: Path) -> Layout | None:
    return _yolo(path) or _voc(path) or _coco(path)


def _of_file(path: Path) -> Layout:
    extension = path.suffix.lower()
    if extension == ".json":
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return Layout("coco", root, {_split_name(path): path})
    if extension in (".yaml", ".yml"):
        return Layout("yolo", path.parent, dict.fromkeys(yolo_splits(path), path))
    raise DataError(f"{path}: is not a data set. Looked for:\n{LOOKED_FOR}")


def _yolo(root: Path) -> Layout | None:
    for name in YAML_NAMES:
        if (root / name).is_file():
            return _of_file(root / name)
    return None


def _voc(root: Path) -> Layout | None:
    for annotations, pictures in (("Annotations", "JPEGImages"), ("annotations", "images")):
        folder = root / annotations
        # Not that of the pictures: they may be elsewhere, or away while results are scored.
        if folder.is_dir() and _has(folder, {".xml"}):
            lists: dict[str, Path | None] = dict(_lists(root / "ImageSets" / "Main"))
            # VOC draws masks for some pictures alone, and lists these as splits of their own.
            drawn = _lists(root / "ImageSets" / "Segmentation")
            lists |= {f"{VOC_MASKED}{split}": path for split, path in drawn.items()}
            lists = lists or {"all": None}
            pictured = dict.fromkeys(lists, root / pictures)
            folders = VocFolders(dict.fromkeys(lists, folder), pictured, lists, root / SEGMENTATIONS)
            return Layout("voc", root, {split: lists[split] or folder for split in lists}, folders)
    beside = {p.name: p for p in _subfolders(root) if _has(p, {".xml"})}
    if not beside and _has(root, {".xml"}) and _has(root, EXTENSIONS):
        beside = {"all": root}
    if not beside:
        return None
    return Layout("voc", root, beside, VocFolders(beside, beside, dict.fromkeys(beside)))


def _lists(folder: Path) -> dict[str, Path]:
    """The lists of splits, without those made for one class of a split (aeroplane_train.txt)."""
    found = {p.stem: p for p in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    return {
        stem: p for stem, p in found.items() if stem.rpartition("_")[2] == stem or stem.rpartition("_")[2] not in found
    }


def _coco(root: Path) -> Layout | None:
    for folder in (root / "annotations", root):
        files = _jsons(folder)
        if files:
            return Layout("coco", root, {_split_name(p): p for p in files})
    sources: dict[str, Path] = {}
    for folder in _subfolders(root):
        files = _jsons(folder)
        if len(files) > 1:
            names = ", ".join(p.name for p in files)
            raise DataError(
                f"{folder}: holds several annotation files: {names}. Name one of them instead of the folder."
            )
        if files:
            sources[folder.name] = files[0]
    return Layout("coco", root, sources) if sources else None


def _jsons(folder: Path) -> list[Path]:
    """The COCO files in a folder; COCO's own captions and keypoints stand back behind its instances."""
    if not folder.is_dir():
        return []
    files = [p for p in sorted(folder.glob("*.json")) if p.is_file() and _looks_like_coco(p)]
    return [p for p in files if p.stem.startswith("instances")] or files


def _looks_like_coco(path: Path) -> bool:
    """By its name, or by a key near its beginning or end: these files can be large."""
    if path.name.startswith("instances") or path.name.endswith((".coco.json", "_annotations.json")):
        return True
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        text = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        text += file.read()
    return any(key in text for key in (b'"images"', b'"annotations"', b'"categories"'))


def _split_name(path: Path) -> str:
    return path.stem.removeprefix("instances_") or path.stem


def _picture_folders(json_file: Path, root: Path, split: str) -> list[Path]:
    """Where the pictures of a COCO file may be, the likeliest first."""
    beside = json_file.parent
    inside = [root / split, root / split / "images", root / "images" / split, root / "images", root]
    return list(dict.fromkeys([beside, beside / "images", *inside]))


def _subfolders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def _has(folder: Path, extensions: frozenset[str] | set[str]) -> bool:
    return any(p.suffix.lower() in extensions for p in folder.iterdir())


def _first(layout: Layout, names: tuple[str, ...]) -> str | None:
    for name in names:
        if name in layout.sources:
            return name
    for name in names:
        longer = [s for s in layout.splits if s.startswith(name) and not s[len(name)].isalpha()]
        if len(longer) == 1:
            return longer[0]
    return None


def _joined(layout: Layout) -> str:
    return ", ".join(layout.splits)
