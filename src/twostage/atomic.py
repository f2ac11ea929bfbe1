"""Atomic file writes: a temporary file beside the target, renamed to it when it is complete. And JSON."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twostage.errors import TwostageError

_BESIDE = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # the temporary files made below; no user's file is named so


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within it, a file beside `path` to be written, which takes its place when complete; missing folders are made.

    Raises TwostageError with the path and the system's reason (no space, no permission); the old file then stays.
    """
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only the start of the name: the system limits its length, and the random part is added.
        handle, beside = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        os.close(handle)
        yield Path(beside)
        with open(beside, "rb+") as file:  # noqa: PTH123
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_umask())  # noqa: PTH101
        os.replace(beside, path)  # noqa: PTH105
        beside = None
    except OSError as error:
        raise TwostageError(f"{path}: cannot be written: {error.strerror or error}.") from None
    finally:
        if beside is not None:  # Ctrl-C passes here too
            Path(beside).unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. As `replacing`."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of `to_json`."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """One line of JSON; paths become strings, numpy numbers and arrays plain ones. Raises ValueError for NaN."""
    return json.dumps(value, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def sweep(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder and its subfolders."""
    for path in folder.rglob(".*"):
        if _BESIDE.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
