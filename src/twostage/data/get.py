"""A published data set: fetched, verified and unpacked, complete or not there at all."""

import logging
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from twostage.data.published import Archive, PublishedData
from twostage.download import download, verify
from twostage.errors import MissingError, TwostageError
from twostage.folders import new_folder, whole_folder

log = logging.getLogger("twostage.data")


def get(one: PublishedData, out: Path, *, splits: tuple[str, ...] = (), offline: bool = False) -> Path:
    """Put a data set, or the archives that some of its splits need, into the new folder `out`.

    Archives lie in `out.archives` until all are unpacked; a fetch that broke off is resumed from there. Raises
    UsageError for a folder that is not new or a split that does not exist, MissingError where the network does not
    bring a file (or `offline`), with where to put it by hand, DataError for a wrong file put there, and TwostageError
    where the disk is too small.
    """
    archives = one.needed(splits)
    there = out.exists()
    new_folder(out, "--out")
    try:
        beside = out.with_name(f"{out.name}.archives")
        beside.mkdir(exist_ok=True)
        _need_space(archives, beside)
        for archive in archives:
            _bring(archive, beside / archive.file, offline=offline)
        with whole_folder(out, "--out") as folder:
            for archive in archives:
                log.info("Unpacking %s", archive.file)
                _unpack(beside / archive.file, archive, folder)
    except BaseException:
        if not there and out.exists():
            out.rmdir()  # it is empty
        raise
    shutil.rmtree(beside)
    return out


def _need_space(archives: Sequence[Archive], beside: Path) -> None:
    """For what is still to be fetched, and for all of it unpacked: pictures are as large as in their archive."""
    fetched = sum(path.stat().st_size for path in beside.iterdir())
    needed = 2 * sum(archive.size for archive in archives) - fetched
    free = shutil.disk_usage(beside).free
    if free < needed:
        raise TwostageError(
            f"{beside}: {free / 2**30:.1f} GiB are free there, and {needed / 2**30:.1f} GiB are needed to fetch and "
            "unpack. Make room, or choose --out on another disk."
        )


def _bring(archive: Archive, path: Path, *, offline: bool) -> None:
    if path.exists():
        verify(path, archive.sha256)  # it may have been put there by hand
        return
    if offline:
        raise MissingError(
            f"{path}: not there, and nothing is fetched offline. Fetch {archive.url} where there is a network, put it "
            "there, and call again."
        )
    download(archive.url, path, archive.sha256)


def _unpack(path: Path, archive: Archive, folder: Path) -> None:
    """All that lies under the archive's root, into the folder; what is there already is the same file."""
    root = PurePosixPath(archive.root)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            packed.extractall(folder)
        return
    with tarfile.open(path) as packed:
        for member in packed:
            place = PurePosixPath(member.name)
            if not place.is_relative_to(root) or place == root:
                continue
            member.name = str(place.relative_to(root))
            packed.extract(member, folder, filter="data")
