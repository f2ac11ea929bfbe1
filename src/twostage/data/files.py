"""Files and folders, as the readers of data sets need them."""

import json
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from twostage.data.faults import unusable


def exists(path: str | Path) -> bool:
    """Whether there is a file or folder; False for an invalid path, or one without permission."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is a regular file; False for an invalid path, or one without permission."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def text_name(path: Path) -> Iterator[str | Path]:
    """A name of a file for libraries that open only names in UTF-8: of any other file that of its open descriptor."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield path


def display_path(path: str | Path, root: Path) -> str:
    """A path for messages: relative to the root of the data set if it is inside."""
    path = Path(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def require_regular(path: Path) -> None:
    """Raises OSError for pipes and devices: reading from a pipe would block."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError("it is not a regular file")


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def below(folder: Path, pattern: str) -> Iterator[Path]:
    """What is in a folder and its folders and matches, without what is hidden: Jupyter keeps copies in hidden ones."""
    found = folder.rglob(pattern)
    return (p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def has_files(folder: Path, extensions: Set[str]) -> bool:
    """Whether a folder holds a file with one of these lower-case extensions."""
    return any(p.suffix.lower() in extensions for p in folder.iterdir())


class _ConstantError(ValueError):
    """NaN or an infinity, which Python writes and JSON does not have."""


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises FaultyDataError if there is none; NaN is refused too."""

    def refuse_constant(constant: str) -> NoReturn:
        raise _ConstantError(f"contains {constant}, which is not a JSON number")

    try:
        require_regular(path)
        document = json.loads(path.read_bytes(), parse_constant=refuse_constant)
    except FileNotFoundError as error:
        raise unusable(path, "missing-file", "does not exist", "Check the path") from error
    except OSError as error:
        message = f"cannot be read ({error.strerror or error})"
        raise unusable(path, "unreadable-file", message, "Check that it is a file you may read") from error
    except RecursionError as error:
        raise unusable(path, "broken-json", "is nested too deeply", "Write plain COCO lists") from error
    except _ConstantError as error:
        fix = "Find it in the file, and write a number there or drop its entry"
        raise unusable(path, "broken-json", str(error), fix) from error
    except ValueError as error:  # of JSON and of text encodings alike
        fix = "Write the file again; it may have been cut short"
        raise unusable(path, "broken-json", f"does not parse: {error}", fix) from error
    if not isinstance(document, dict):
        raise unusable(
            path, "broken-json", f"contains a {type(document).__name__}, not an object", "Name a COCO data set"
        )
    return document
