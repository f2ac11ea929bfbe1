"""Folders a verb writes into: new ones, so that no earlier result is ever mixed up or lost."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from twostage.errors import TwostageError, UsageError

_PATIENCE = 20  # seconds


def cache_folder(name: str) -> Path:
    """Where what may be fetched or computed again is kept: `name` under $TWOSTAGE_HOME, else
    $XDG_CACHE_HOME/twostage, else ~/.cache/twostage."""
    home = os.environ.get("TWOSTAGE_HOME")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "twostage"
    return root.expanduser() / name


def made_in_cache(path: Path) -> Path:
    """The folder, made where there is none. Raises TwostageError where the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TwostageError(
            f"{path}: cannot be made ({error.strerror or error}). TWOSTAGE_HOME names another folder."
        ) from error
    return path


def new_folder(path: Path, flag: str) -> Path:
    """Make the folder `path`, asked for by `flag`; an empty one may be there. Raises UsageError for any other."""
    require_new(path, flag)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be made ({error.strerror or error})") from error
    return path


def require_new(path: Path, flag: str) -> None:
    """Raises UsageError where `path` is something else than an empty folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{flag} {path}: is a file, and must be a folder")
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{flag} {path}: is not empty, and nothing is overwritten: name a new folder")


def next_folder(parent: Path, name: str) -> Path:
    """Make and return the first folder `parent/name-N` that is not there yet, N from 1."""
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UsageError(f"{path}: cannot be made ({error.strerror or error}); choose a folder by --out") from error
        else:
            return path


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Make a folder where there is none, and keep it to this process. Raises UsageError where another one has it.

    Waits for the children of one that was killed: the system frees its lock when the last of them has noticed.
    """
    path.mkdir(exist_ok=True)
    lock = FileLock(path / "lock", timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{path}: another run is writing there. Wait for its end, or choose a new folder.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def whole_folder(path: Path, flag: str) -> Iterator[Path]:
    """A folder to fill that becomes `path`, asked for by `flag`, when all went well, and is gone when it did not.

    What writers that were killed have left beside it goes too. Raises UsageError as `new_folder`, and where another
    process is writing the same folder.
    """
    path = path.absolute()
    if path == Path.cwd():
        raise UsageError(f"{flag} {path}: is the folder you are in: name one that can be put in its place")
    new_folder(path, flag)
    prefix = f".{path.name[:40]}."
    lock = FileLock(path.with_name(f"{prefix}lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{flag} {path}: another process is writing it. Choose a new folder.") from None
    try:
        for left in path.parent.glob(f"{glob.escape(prefix)}{'[a-z0-9_]' * 8}.part"):
            shutil.rmtree(left, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
        try:
            yield beside
            beside.chmod(path.stat().st_mode)
            path.rmdir()
            beside.rename(path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            with suppress(OSError):
                path.rmdir()
            raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
