"""A published data set: downloaded, verified and unpacked; the folder appears only when it is complete."""

import logging
import re
import shutil
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from twostage.atomic import write_text
from twostage.data.published import Archive, PublishedData
from twostage.download import download, verify
from twostage.errors import DataError, MissingError, TwostageError, UsageError
from twostage.folders import claimed, require_replaceable, whole_folder

log = logging.getLogger("twostage.data")

_FETCHED = "fetched.txt"  # names of downloaded archives


def get(one: PublishedData, out: Path, *, splits: tuple[str, ...] = (), offline: bool = False) -> Path:
    """Download a data set, or what some of its splits need, into the new folder `out`.

    Archives are kept in `out.archives` until all are unpacked; an interrupted download is resumed from there, and files
    put there by hand are kept. Raises UsageError for a folder that is not new, an unknown split or a folder that
    another process is downloading into; MissingError if a file cannot be downloaded (or `offline`), with where to put
    it by hand; DataError for a wrong file there; TwostageError if the disk is too small.
    """
    archives = one.needed(splits)
    out = out.absolute()
    require_replaceable(out, "--out")
    beside = out.with_name(f"{out.name}.archives")
    with _kept(beside):
        _bring_all(archives, beside, offline=offline)
        absent = {split for split in one.splits if not {a for a in one.archives if split in a.splits} <= set(archives)}
        with whole_folder(out, "--out") as folder:
            for archive in archives:
                log.info("Unpacking %s", archive.file)
                _unpack(beside / archive.file, archive, folder, absent)
        for name in _fetched(beside):
            (beside / name).unlink(missing_ok=True)
        (beside / _FETCHED).unlink(missing_ok=True)
    if beside.exists():
        log.info("%s: the files put there by hand are no longer needed.", beside)
    return out


@contextmanager
def _kept(beside: Path) -> Iterator[None]:
    """Locks the folder of the archives; removes it when it is empty."""
    if (beside.exists() or beside.is_symlink()) and not beside.is_dir():
        raise UsageError(
            f"{beside}: is not a folder, and archives are downloaded there. Move it, or use another --out."
        )
    beside.parent.mkdir(parents=True, exist_ok=True)
    with claimed(beside):
        try:
            yield
        finally:
            with suppress(OSError):  # if it is not empty, is a link, or the lock cannot be removed
                (beside / "lock").unlink()
                beside.rmdir()


def _fetched(beside: Path) -> list[str]:
    """The archives that were downloaded, by this or an earlier call; the others were put there by hand."""
    path = beside / _FETCHED
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _bring_all(archives: Sequence[Archive], beside: Path, *, offline: bool) -> None:
    """Download the missing archives."""
    there = [archive for archive in archives if (beside / archive.file).is_file()]
    new = [archive for archive in archives if archive not in there]
    if new and offline:
        lacking = "\n".join(f"  {archive.url}, to {beside / archive.file}" for archive in new)
        raise MissingError(
            f"{beside}: nothing is downloaded offline. Download these elsewhere, and call again:\n{lacking}"
        )
    for archive in there:
        try:
            verify(beside / archive.file, archive.sha256)
        except DataError as error:
            raise DataError(f"{error} Remove it, or put {archive.url} ({archive.size} bytes) there.") from None
    parts = [path.stat().st_size for a in new if (path := beside / f"{a.file}.part").is_file()]
    needed = sum(a.size for a in archives) + sum(a.size for a in new) - sum(parts)
    free = shutil.disk_usage(beside).free
    if free < needed:
        raise TwostageError(
            f"{beside}: {free / 2**30:.1f} GiB are free, and {needed / 2**30:.1f} GiB are needed to download "
            "and unpack. Free some space, or choose --out on another disk."
        )
    for archive in new:
        download(archive.url, beside / archive.file, archive.sha256)
        write_text(beside / _FETCHED, "".join(f"{name}\n" for name in [*_fetched(beside), archive.file]))


def _unpack(path: Path, archive: Archive, folder: Path, absent: Collection[str]) -> None:
    """Unpack everything under the archive's root, except files of splits whose images are absent."""
    root = PurePosixPath(archive.root)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            names = [name for name in packed.namelist() if not set(re.split(r"[/_.]", name)) & set(absent)]
            packed.extractall(folder, names)
        return
    with tarfile.open(path) as packed:
        for member in packed:
            place = PurePosixPath(member.name)
            if not place.is_relative_to(root) or place == root:
                continue
            member.name = str(place.relative_to(root))
            packed.extract(member, folder, filter="data")
