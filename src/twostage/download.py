"""Download a file: interrupted transfers are resumed, the hash is verified, the file appears only when complete."""

import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from twostage.errors import DataError, MissingError, TwostageError
from twostage.progress import Show, bytes_bar

log = logging.getLogger("twostage.download")
_BLOCK = 1 << 20  # bytes
_PATIENCE = 30  # seconds without a byte
_TRIES = 3  # in a row without a new byte
_PAUSE = 1.0  # seconds between them
_PASSING = (408, 429, 500, 502, 503, 504)  # status codes worth another try


def download(url: str, path: Path, digits: str, algorithm: str = "sha256") -> None:
    """Download `url` to `path`; its digest must begin with `digits`. Proxies are those of the environment.

    An interrupted download is resumed, by a later call too. Raises MissingError, with the place where to put the file
    by hand, and TwostageError if it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    log.info("Fetching %s", url)
    by_hand = f"Run again to resume, or download it by hand and put it at {path}."
    failures = 0
    with bytes_bar(path.name) as show:
        while True:
            had = part.stat().st_size if part.exists() else 0
            try:
                if _fetch(url, part, had, show):
                    break
                reason = "the connection ended early"
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                failures = failures if error.code in _PASSING else _TRIES
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", None) or error or type(error).__name__)
            failures = 0 if part.exists() and part.stat().st_size > had else failures + 1
            if failures >= _TRIES:
                raise MissingError(f"{url}: cannot be downloaded ({reason}). {by_hand}")
            time.sleep(_PAUSE)
    try:
        verify(part, digits, algorithm)
    except DataError as error:
        part.unlink()
        raise MissingError(f"{url}: {error} It was removed. {by_hand}") from None
    part.replace(path)


def verify(path: Path, digits: str, algorithm: str = "sha256") -> None:
    """Raises DataError if a file's digest, "sha256" or "md5", does not begin with `digits`."""
    with path.open("rb") as file:
        # Where MD5 is all that a publisher gives, it finds damage; machines that forbid it as a proof allow that.
        digest = hashlib.file_digest(file, partial(hashlib.new, algorithm, usedforsecurity=False)).hexdigest()
    if not digest.startswith(digits):
        size, name = path.stat().st_size, {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
        raise DataError(f"{path}: another file ({size} bytes): its {name} is {digest} and must begin with {digits}.")


def _fetch(url: str, part: Path, had: int, show: Show) -> bool:
    """Append the rest of the file to `part`, which has `had` bytes; returns whether it is complete."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={had}-"} if had else {})
    try:
        # Not `urlopen`: it keeps the proxies of the environment at its first call.
        answer = urllib.request.build_opener().open(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(had):
            return True
        part.unlink()  # longer than the file itself
        return False
    with answer:
        resumed = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        size = had if resumed else 0
        length = answer.headers.get("Content-Length")
        total = size + int(length) if length else None
        with _written(part), part.open("ab" if resumed else "wb") as file:
            while block := _read(answer):
                file.write(block)
                size += len(block)
                show(size, total)
    return total is None or size == total


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The next bytes. A broken connection raises HTTPException, so that it differs from a full disk."""
    try:
        return answer.read(_BLOCK)
    except OSError as error:
        raise http.client.HTTPException(str(error)) from error


@contextmanager
def _written(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TwostageError(f"{part}: cannot be written: {error.strerror or error}.") from error
