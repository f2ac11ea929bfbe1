"""The file that describes a YOLO data set: its class names, and where the images of each split are.

data.yaml                        names, train, val ... (Ultralytics, Roboflow, CVAT)
obj.data, obj.names, train.txt   Darknet, CVAT's "YOLO 1.1"
classes.txt                      Label Studio, LabelImg: images in images/, or beside their labels; one split, `all`
"""

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

import yaml

from twostage.data.faults import unusable
from twostage.data.fields import pack, renamed
from twostage.data.files import has_files, subfolders
from twostage.data.images import EXTENSIONS

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLIT_KEYS = ("train", "val", "valid", "test", "trainval", "minival")
LARGEST_YAML = 1 << 20  # bytes
DEEPEST_YAML = 50  # brackets in brackets; PyYAML's time grows with the square of it
# What is read of data.yaml, or describes rows that are written otherwise; other keys are kept.
READ = ("names", "nc", "path", "kpt_shape", "flip_idx", *SPLIT_KEYS)
_CLASSES = "classes.txt"
_ALL = "all"


def find(path: Path) -> Path | None:
    """The describing file of a folder, or the file itself if it is one."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml", ".data") or path.name == _CLASSES else None
    named = [path / name for name in YAML_NAMES] + [one for one in sorted(path.glob("*.data")) if _is_darknet(one)]
    found = next((one for one in named if one.is_file()), None)
    classes = (path / _CLASSES, path / "labels" / _CLASSES)
    return found or next((one for one in classes if one.is_file() and _has_labels(one)), None)


def _is_darknet(path: Path) -> bool:
    with path.open("rb") as file:
        return re.search(rb"^\s*names\s*=", file.read(1 << 12), re.MULTILINE) is not None


def _has_labels(classes: Path) -> bool:
    """Whether there are images and label files beside a list of names; others keep such a list too."""
    root = _root(classes)
    return any(
        images.is_dir() and labels.is_dir() and _has_images(images) and _has_rows(labels)
        for images, labels in [(root / "images", root / "labels"), (root, root)]
    )


def _has_images(folder: Path) -> bool:
    return any(has_files(one, EXTENSIONS) for one in (folder, *subfolders(folder)))


def _has_rows(folder: Path) -> bool:
    files = (p for one in (folder, *subfolders(folder)) for p in one.glob("*.txt") if p.name != _CLASSES)
    return any(_is_row(path) for path in files)


def _is_row(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb"\d+([ \t]+[\d.eE+-]+){4}", file.read(120)) is not None


def _root(classes: Path) -> Path:
    return classes.parent.parent if classes.parent.name == "labels" else classes.parent


def load(path: Path) -> dict[str, Any]:
    """The names and splits of a describing file, as data.yaml has them. Raises FaultyDataError."""
    if path.name == _CLASSES:
        root = _root(path)
        place = "images" if (root / "images").is_dir() else "."
        return {"names": _lines(path), "path": str(root.absolute()), _ALL: place}
    if path.suffix.lower() == ".data":
        pairs = (line.partition("=") for line in _lines(path) if not line.startswith("#"))
        keys = {key.strip(): value.strip() for key, _, value in pairs}
        written = Path(keys.get("names", ""))
        names = next((one for one in (path.parent / written, path.parent / written.name) if one.is_file()), None)
        if names is None:
            broken(path, "has no `names =` with the file of the class names", "Export the data set again")
        # Darknet's paths begin at its own folder, as data/train.txt; the lists are beside this file.
        lists = {key: Path(keys[key]).name for key in SPLIT_KEYS if keys.get(key)}
        return {"names": _lines(names), **{key: name for key, name in lists.items() if (path.parent / name).exists()}}
    return _yaml(path)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > LARGEST_YAML:
            broken(path, f"is larger than {LARGEST_YAML >> 20} MiB")
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        broken(path, f"cannot be read: {error}", "Write one line of text for each class")


def _yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_YAML:
            broken(path, f"is larger than {LARGEST_YAML >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")
        if depth(text) > DEEPEST_YAML:
            broken(path, "is nested too deeply")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            broken(path, "contains aliases (*name), which may expand without bound")
        document = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        broken(path, f"cannot be read: {' '.join(str(error).split())}")
    if not isinstance(document, dict):
        broken(path, "has no keys")
    return document


def splits(document: Mapping[str, Any]) -> list[str]:
    """The keys of the splits that a document has."""
    return [key for key in SPLIT_KEYS if document.get(key)] or [_ALL] * (_ALL in document)


def other(document: Mapping[str, Any]) -> str:
    """The keys of data.yaml that are not read, such as a licence (`data.fields`)."""
    plain: dict[str, Any] = json.loads(json.dumps(document, default=str, skipkeys=True))  # keys of YAML may be numbers
    return pack(renamed(plain, "yolo"), (*READ, _ALL))


def depth(text: str) -> int:
    """The deepest nesting of brackets, those in quotes included."""
    steps = (1 if c in "[{" else -1 for c in text if c in "[]{}")
    return max(accumulate(steps), default=0)


def is_small(text: str) -> bool:
    """Whether data.yaml can hold such keys, and is read again."""
    return len(text) < LARGEST_YAML // 2 and depth(text) < DEEPEST_YAML


def broken(path: Path, message: str, fix: str = "") -> NoReturn:
    """Raises FaultyDataError for a describing file."""
    fix = fix or "Write `names: [cat, dog]`, `train: images/train`, `val: images/val`"
    raise unusable(path, "broken-yaml", message, fix)


def names_of(document: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The class names. Raises FaultyDataError."""
    names = document.get("names")
    if isinstance(names, dict):
        if sorted(names, key=repr) != sorted(range(len(names)), key=repr):
            broken(path, f"names must be numbered 0 to {len(names) - 1} without gaps")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        broken(path, "has no list of names")
    for name in names:
        if not isinstance(name, str | int | float) or isinstance(name, bool):
            broken(path, f"the name {name!r} is not text; put it in quotes")
    names = [str(name) for name in names]
    if len(set(names)) < len(names):
        broken(path, "two classes share a name")
    if isinstance(document.get("nc"), int) and document["nc"] != len(names):
        broken(path, f"nc is {document['nc']}, but there are {len(names)} names")
    return tuple(names)
