"""Files in the folders of a data set that no split uses: images that are not listed, annotations without an image."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from twostage.data import unread
from twostage.data.dataset import Dataset
from twostage.data.extras import NAME
from twostage.data.faults import Fault, fault
from twostage.data.files import display_path
from twostage.data.images import EXTENSIONS
from twostage.data.layout import Layout

_NAMED = 3
# Beside annotations in every export: descriptions of the data, and lists of names.
_KNOWN = frozenset({NAME, "classes.txt", "labelmap.txt", "notes.json", "obj.names", "thumbs.db", "desktop.ini"})


def unused_files(datasets: Sequence[Dataset], layout: Layout) -> Iterator[Fault]:
    """Notes on the files in those folders that hold images or annotations of the data set, but not in others."""
    images = {dataset.path(index) for dataset in datasets for index in range(len(dataset)) if not dataset.pixels}
    stems = {path.stem for path in images}
    read = set(layout.sources.values())
    folders = {path.parent for path in images} | {one if one.is_dir() else one.parent for one in read}
    folders |= {layout.root / name for name in ("Annotations", "annotations")}
    files = sorted(
        path
        for folder in folders
        if folder.is_dir() and folder.parent.name != "ImageSets"
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path not in images and path not in read
        if layout.kind != "yolo" or path.suffix.lower() not in unread.EXTENSIONS  # its reader reports them
    )
    known = _KNOWN | _named(layout)
    left = [path for path in files if path.stem not in stems and path.name.lower() not in known]
    unlisted = [path for path in left if path.suffix.lower() in EXTENSIONS]
    # labelme reads all its files; the name of an image may be another than that of its file.
    own = {"labelme": ".json"}.get(layout.kind)
    others = [path for path in left if path.suffix.lower() not in (*EXTENSIONS, own)]
    others = [path for path in others if not path.name.lower().startswith("readme")]
    if unlisted:
        message = f"{len(unlisted)} images are not in any split: {_some(unlisted, layout.root)}"
        fix = "Annotate them, list those without objects, or remove them"
        yield fault("unlisted-images", layout.root, "", message, fix)
    if others:
        kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        message = f"{len(others)} files are not read ({counted}): {_some(others, layout.root)}"
        yield fault("unused-files", layout.root, "", message, "Nothing to do, or remove them")


def _named(layout: Layout) -> set[str]:
    """The names in the description of a YOLO data set, which may be those of lists of images."""
    if layout.kind != "yolo":
        return set()
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in set(layout.sources.values())]
    return {word.rpartition("/")[2].lower() for text in texts for word in re.split(r"[\s:=\[\],'\"]+", text)}


def _some(paths: Sequence[Path], root: Path) -> str:
    shown = [display_path(path, root) for path in paths[:_NAMED]]
    return ", ".join(shown + ["..."] * (len(paths) > _NAMED))
