"""Atomic file writes: a temporary file beside the target is renamed to it when it is complete. And JSON."""

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from twostage.errors import TwostageError

_BESIDE = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # the temporary folders made below; nothing of a user is named so


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within it, a file to be written, which takes the place of `path` when complete; missing folders are made.

    It stands in a temporary folder beside `path`, where writers may have temporary files of their own (safetensors
    does). Raises TwostageError with the path and the system's reason (no space, no permission); the old file then
    stays.
    """
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only the start of the name: the system limits its length, and the random part is added.
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent))
        written = beside / path.name
        mode = _mode_of_new_files(beside)
        yield written
        with written.open("rb+") as file:
            os.fsync(file.fileno())
        with suppress(PermissionError):  # drives of other systems keep one mode for all files
            os.chmod(written, mode)  # noqa: PTH101
        os.replace(written, path)  # noqa: PTH105
    except OSError as error:
        raise TwostageError(f"{path}: cannot be written: {error.strerror or error}.") from None
    finally:
        if beside is not None:  # Ctrl-C passes here too
            shutil.rmtree(beside, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. As `replacing`."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text. Bytes of a file's name that are no text are escaped, as on the console."""
    write_bytes(path, content.encode(errors="backslashreplace"))


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
    """Remove temporary folders that killed processes left in a folder and its subfolders."""
    for path in list(folder.rglob(".*")):
        if _BESIDE.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _mode_of_new_files(folder: Path) -> int:
    """The permissions of new files, from one: `os.umask` gives the mask only by changing it, for all threads."""
    new = folder / "new"
    new.touch()
    mode = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    return mode
