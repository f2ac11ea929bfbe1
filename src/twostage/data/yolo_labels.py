"""Which label file belongs to which image of a YOLO data set, in both directions.

`images/a.jpg` has its rows in `labels/a.txt`. Of several folders called `images` on a path, the last one is replaced
that leads to a file: CVAT nests whole exports.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from twostage.data import unread
from twostage.data.builder import Builder
from twostage.data.files import display_path, exists

_NAMED = 3


def label_file(image_file: Path) -> Path:
    """The label file of an image, whether it exists or not."""
    parts = image_file.parts
    places = [i for i in range(len(parts) - 2, -1, -1) if parts[i] == "images"]
    candidates = [Path(*parts[:i], "labels", *parts[i + 1 :]).with_suffix(".txt") for i in places]
    candidates.append(image_file.with_suffix(".txt"))
    return next(filter(exists, candidates), candidates[0])


def report_left_over(
    builder: Builder, label_files: Sequence[Path], taken: Iterable[Path], image_folders: Iterable[Path]
) -> None:
    """Reports label files with rows and without an image in any split, and image files that cannot be read.

    `label_files` are those of this split, `taken` those of all. Lists and class names in text files have no rows.
    """
    used = set(taken)
    folders = sorted({path.parent for path in label_files})
    left = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.txt")) if path not in used]
    left = [path for path in left if _has_rows(path)]
    unreadable = sorted(
        path
        for folder in sorted(set(image_folders))
        if folder.is_dir()
        for path in folder.iterdir()
        if path.suffix.lower() in unread.EXTENSIONS
    )
    if unreadable:
        kinds = ", ".join(sorted({path.suffix.lower() for path in unreadable}))
        message = f"{len(unreadable)} files ({kinds}) are left out: {_some(unreadable, builder.root)}"
        builder.report("left-over-images", builder.split, "", message, "Convert them to JPEG or PNG")
    if left:
        message = f"{len(left)} label files have no image, and their objects are left out: {_some(left, builder.root)}"
        fix = "Add the images, or remove the files"
        builder.report("left-over-labels", builder.split, "", message, fix)


def _some(paths: Sequence[Path], root: Path) -> str:
    shown = [display_path(path, root) for path in paths[:_NAMED]]
    return ", ".join(shown + ["..."] * (len(paths) > _NAMED))


def _has_rows(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            fields = file.readline(1 << 12).split()
            return len(fields) >= 5 and all(isinstance(float(v), float) for v in fields)
    except (OSError, ValueError):
        return False
