"""Output folders of the verbs: always new ones, so that no earlier result is overwritten."""

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


CERTIFICATE = ".certificate.json"  # what a certificate's name ends with, beside its weights


def cache_folder(name: str) -> Path:
    """The cache folder `name` under $TWOSTAGE_HOME, else $XDG_CACHE_HOME/twostage, else ~/.cache/twostage.

    Raises TwostageError for a user without a home folder, as in some containers.
    """
    home = os.environ.get("TWOSTAGE_HOME")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "twostage"
    try:
        return root.expanduser() / name
    except RuntimeError:
        raise TwostageError(f"{root}: there is no home folder. Set TWOSTAGE_HOME to a folder for the cache.") from None


def made_in_cache(path: Path) -> Path:
    """Make the folder if it does not exist, and return it. Raises TwostageError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TwostageError(
            f"{path}: cannot be made ({error.strerror or error}). Set TWOSTAGE_HOME to another folder."
        ) from error
    return path


def new_folder(path: Path, flag: str) -> Path:
    """Make the folder `path`, the value of `flag`. It may exist if it is empty; else raises UsageError."""
    require_new(path, flag)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be made ({error.strerror or error})") from error
    return path


def require_new(path: Path, flag: str) -> None:
    """Raises UsageError if `path` exists and is not an empty folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{flag} {path}: is a file, not a folder")
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{flag} {path}: is not empty, and nothing is overwritten: choose a new folder")


def require_new_file(path: Path, flag: str) -> None:
    """Raises UsageError if `path`, the value of `flag`, exists, or could not be written: before the work, not after."""
    if os.path.exists(path):  # noqa: PTH110  Path.exists raises where a folder may not be entered
        raise UsageError(f"{flag} {path}: exists already, and nothing is overwritten: name a new file")
    parents = path.absolute().parents
    folder = next((parent for parent in parents if os.path.exists(parent)), None)  # noqa: PTH110
    if folder is None:  # Windows
        raise UsageError(f"{flag} {path}: there is no drive {path.absolute().anchor}: name a file elsewhere")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "cannot be written to" if folder.is_dir() else "is a file, not a folder"
        raise UsageError(f"{flag} {path}: {folder} {why}: name a file elsewhere")


def require_replaceable(path: Path, flag: str) -> None:
    """As `require_new`, and UsageError for a folder that `whole_folder` cannot replace; call it before long work."""
    real = _without_links(path)
    if real == _without_links(Path.cwd()):  # on Windows the name of a drive may be a link too
        raise UsageError(f"{flag} {path}: is the folder you are in, which cannot be replaced: choose another one")
    if os.path.ismount(real):
        raise UsageError(f"{flag} {path}: is a mount point, which cannot be replaced: choose a folder in it")
    require_new(real, flag)


def _without_links(path: Path) -> Path:
    """The folder itself: a link to it cannot be replaced by a folder. Of links in a circle one is left."""
    return Path(os.path.realpath(path))


def next_folder(parent: Path, name: str) -> Path:
    """Make and return the first folder `parent/name-N` that does not exist yet, N from 1."""
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UsageError(f"{path}: cannot be made ({error.strerror or error}); use --out") from error
        else:
            return path


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Make a folder if it does not exist, and lock it for this process. Raises UsageError if another process has it.

    Waits for the child processes of a run that was killed: its lock is free when the last of them has ended.
    """
    path.mkdir(exist_ok=True)
    try:
        held = FileLock(path / "lock", timeout=_PATIENCE).acquire()
    except Timeout:
        raise UsageError(f"{path}: another run is writing there. Wait until it ends, or choose a new folder.") from None
    with held:
        yield


@contextmanager
def whole_folder(path: Path, flag: str) -> Iterator[Path]:
    """A temporary folder to fill, renamed to `path`, the value of `flag`, on success and removed on failure.

    Temporary folders that killed processes left beside it are removed too. Raises UsageError as `require_replaceable`,
    and if another process is writing the same folder.
    """
    require_replaceable(path, flag)
    path = new_folder(_without_links(path), flag)
    prefix = f".{path.name[:40]}."
    lock = FileLock(path.with_name(f"{prefix}lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{flag} {path}: another process is writing there. Choose a new folder.") from None
    try:
        for stale in path.parent.glob(f"{glob.escape(prefix)}{'[a-z0-9_]' * 8}.part"):
            shutil.rmtree(stale, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
        try:
            yield beside
            with suppress(PermissionError):  # drives of other systems keep one mode for all files
                beside.chmod(path.stat().st_mode)
            path.rmdir()
            beside.rename(path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            with suppress(OSError):
                path.rmdir()
            raise
    finally:
        with suppress(OSError):  # Windows removes no open file; there the lock itself does when it is released
            Path(lock.lock_file).unlink()
        lock.release()
