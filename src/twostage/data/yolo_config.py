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

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "data_config.yaml")
SPLIT_KEYS = ("train", "val", "valid", "validation", "test", "trainval", "minival")
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
    return found or next((one for one in classes if one.is_file() and _has_labels(path)), None)


def _is_darknet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return re.search(rb"^\s*names\s*=", file.read(1 << 12), re.MULTILINE) is not None


def _has_labels(root: Path) -> bool:
    """Whether there are images and rows for them; others keep a list of names too."""
    if (root / "Annotations").is_dir():
        return False
    inside = root / "images", root / "labels"
    nested = all(folder.is_dir() for folder in inside) and _has_images(inside[0]) and _has_rows(inside[1])
    return nested or (has_files(root, EXTENSIONS) and any(map(_is_row, root.glob("*.txt"))))


def _has_images(folder: Path) -> bool:
    return any(has_files(one, EXTENSIONS) for one in (folder, *subfolders(folder)))


def _has_rows(folder: Path) -> bool:
    return any(_is_row(path) for one in (folder, *subfolders(folder)) for path in one.glob("*.txt"))


def _is_row(path: Path) -> bool:
    if path.name == _CLASSES or not path.is_file():
        return False
    with path.open("rb") as file:
        return re.match(rb"\d+([ \t]+[\d.eE+-]+){4}", file.read(120)) is not None


def base(path: Path, document: Mapping[str, Any]) -> Path:
    """The folder that the places of the splits are relative to."""
    if path.name == _CLASSES:
        return path.parent.parent if path.parent.name == "labels" else path.parent
    return path.parent / str(document.get("path") or "")


def load(path: Path) -> dict[str, Any]:
    """The names and splits of a describing file, as data.yaml has them. Raises FaultyDataError."""
    if path.name == _CLASSES:
        return {"names": _names(path), _ALL: "images" if (base(path, {}) / "images").is_dir() else "."}
    document = _darknet(path) if path.suffix.lower() == ".data" else _yaml(path)
    # Datumaro writes Train and Validation.
    return {key.lower() if str(key).lower() in SPLIT_KEYS else key: value for key, value in document.items()}


def _darknet(path: Path) -> dict[str, Any]:
    """Its paths begin at Darknet's own folder, as data/train.txt; the files are there, or beside this one."""
    pairs = (line.partition("=") for line in _text(path).splitlines() if not line.lstrip().startswith("#"))
    keys = {key.strip().lower(): value.strip().replace("\\", "/") for key, equals, value in pairs if equals}

    def there(written: str) -> str:
        places = [written, written.rpartition("/")[2]]
        return next((place for place in places if place and (path.parent / place).exists()), written)

    names = path.parent / there(keys.get("names", ""))
    if not names.is_file():
        broken(path, "has no `names =` with the file of the class names", "Export the data set again")
    return {"names": _names(names), **{key: there(keys[key]) for key in SPLIT_KEYS if keys.get(key)}}


def _names(path: Path) -> list[str]:
    """One class per line; blank ones at the end are none."""
    names = [line.strip() for line in _text(path).rstrip().splitlines()]
    if "" in names:
        message = f"line {names.index('') + 1} is empty, and lines are the numbers of classes"
        broken(path, message, "Write the name of the class, or remove the line if the rows do not count it")
    return names


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_YAML:
            broken(path, f"is larger than {LARGEST_YAML >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")
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
