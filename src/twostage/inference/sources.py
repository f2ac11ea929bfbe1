"""The sources of `predict` as a stream of images: paths, folders, patterns, lists, arrays, tensors, videos.

Paths are checked at once, so that a wrong one fails before any work; images are decoded as they are consumed. An image
that cannot be decoded does not end the stream: its item carries the error.
"""

import errno
import glob
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from twostage.data import unread
from twostage.data.images import EXTENSIONS, read_image
from twostage.errors import DataError, MissingError, UsageError

log = logging.getLogger("twostage.inference")

VIDEO_EXTENSIONS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"))


@dataclass(frozen=True, eq=False)
class Item:
    """One image (RGB, upright), or the `error` with which reading it failed.

    `path` is as it was given, None for images from memory; that of a video's frame has its number: `clip.mp4#17`.
    """

    image: UInt8[np.ndarray, "h w 3"] | None
    path: str | None = None
    error: DataError | None = None


def expand(source: Any, *, ahead: int = 2) -> Iterator[Item]:
    """The images of a source, in its order; `ahead` of them are decoded in the background while one is in use.

    A source is the path of an image or a video, a folder (its images sorted by name, without subfolders),
    a glob pattern (`**` enters folders), `-` (paths from standard input, one per line), an array [h, w, 3] or [h, w] of
    uint8 in RGB, a PIL image, the bytes of an image file or the open file, a tensor [3, h, w] of uint8 or of floats
    from 0 to 1, or any iterable of these. Arrays and tensors with one more axis in front are batches. Standard input
    and iterators are read as images are needed.

    Raises DataError for a path that does not exist, a folder without images and a pattern without matches; UsageError
    for a URL and anything that is no source; MissingError for videos without the `video` extra: beside images their
    items carry the error.
    """
    parts = source if isinstance(source, list | tuple) else [source]
    known = isinstance(source, str | Path | list | tuple) and not any(isinstance(p, str) and p == "-" for p in parts)
    return _decode(_jobs(source), ahead if known else 0)


def is_one_image(source: Any) -> bool:
    """Whether `predict` should give one result for this source and not an iterator over results."""
    if isinstance(source, str | Path):
        path = Path(source)
        return str(source) != "-" and not path.is_dir() and not _is_pattern(source) and not _is_video(path)
    in_memory = isinstance(source, Image.Image | bytes | bytearray | memoryview) or hasattr(source, "read")
    return in_memory or (_is_array(source) and source.ndim < 4)


_Job = Callable[[], Item] | Iterator[Item]


def _jobs(source: Any) -> Iterator[_Job]:
    """One job per item to decode; all checks that need no decoding are made before this returns."""
    if isinstance(source, str) and source == "-":
        return (_of_file(line) for line in _lines())
    if isinstance(source, str | Path):
        return iter(_of_path(source))
    if hasattr(source, "read") or isinstance(source, bytearray | memoryview):
        source = _contents(source)
    if isinstance(source, Image.Image | bytes):
        return iter([partial(_read, source, getattr(source, "filename", "") or None)])
    if _is_array(source):
        images = source if source.ndim == 4 else [source]
        return iter([partial(Item, _array(image)) for image in images])
    if isinstance(source, list | tuple):
        return chain.from_iterable([_jobs(part) for part in source])
    if isinstance(source, Iterable) and not isinstance(source, dict):
        return chain.from_iterable(map(_jobs_later, source))
    raise UsageError(
        f"Cannot read images from {type(source).__name__}. Give a path, a folder, a pattern, '-', an RGB array of "
        "uint8 [h, w, 3], a PIL image, the bytes of a file, a tensor [3, h, w], or a list of these."
    )


def _contents(source: Any) -> bytes:
    """The bytes of an open file, or of memory. Raises UsageError for a file that was opened as text."""
    data = source.read() if hasattr(source, "read") else bytes(source)
    if not isinstance(data, bytes | bytearray):
        kind = type(data).__name__
        mend = "open it with 'rb'" if isinstance(data, str) else "give the bytes that its read() returns"
        raise UsageError(f"read() of {type(source).__name__} returns {kind}, not the bytes of an image file: {mend}.")
    return bytes(data)


def _jobs_later(source: Any) -> Iterator[_Job]:
    """As `_jobs`, inside a stream: a wrong path must not end it after work has been done."""
    try:
        return _jobs(source)
    except DataError as error:
        return iter([partial(Item, None, str(source), error)])


def _of_path(source: str | Path) -> list[_Job]:
    text, path = str(source), Path(source)
    if not text:
        raise DataError("'' is not a path. Name an image, a folder or a pattern.")
    if "://" in text and text.split("://")[0] in ("http", "https", "ftp", "rtsp", "rtmp", "s3", "gs"):
        raise UsageError(f"{text}: nothing is downloaded here. Fetch it first (curl -LO '{text}') and give the file.")
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(
                f"{text[:40]}...: {len(text)} characters are too long for a path. An image in base64 is given as "
                "bytes: base64.b64decode(text)."
            ) from None
    except ValueError:  # with a zero byte
        raise DataError(f"{text[:40]!r} is not a path. Name an image, a folder or a pattern.") from None
    if path.is_dir():
        return _together(_in_folder(path))
    if path.exists():
        return [_of_file(source)]
    if _is_pattern(source):
        return _together(_matching(text))
    raise DataError(f"{text}: does not exist. Check the path; it is read from {Path.cwd()}.")


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if _is_media(file))
    _warn_of_unread(folder)
    if files:
        return files
    deeper = sum(_is_media(file) for file in folder.rglob("*"))
    mend = f" Its subfolders hold {deeper}: give '{folder}/**/*'." if deeper else " Known endings: " + _endings()
    raise DataError(f"{folder}: contains no images.{mend}")


def _warn_of_unread(folder: Path) -> None:
    left = sorted(file for file in folder.iterdir() if file.suffix.lower() in unread.EXTENSIONS)
    if left:
        kinds = " ".join(sorted({file.suffix.lower() for file in left}))
        log.warning(
            "%s: %d files (%s) are left out, %s the first: convert them to JPEG or PNG.",
            *(folder, len(left), kinds, left[0].name),
        )


def _matching(pattern: str) -> list[Path]:
    # Path.glob takes no absolute patterns.
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    media = [file for file in files if _is_media(file)]
    if not files:
        raise DataError(f"{pattern}: matches nothing. Check the pattern; it is read from {Path.cwd()}.")
    if not media:
        raise DataError(f"{pattern}: matches {len(files)} files, none of them an image. Known endings: {_endings()}")
    return media


def _endings() -> str:
    return " ".join(sorted(EXTENSIONS | VIDEO_EXTENSIONS))


def _is_pattern(source: str | Path) -> bool:
    return glob.has_magic(str(source)) and not Path(source).exists()


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS


def _is_media(file: Path) -> bool:
    hidden = file.name.startswith(".")  # as macOS leaves beside each image it copies
    return not hidden and file.suffix.lower() in EXTENSIONS | VIDEO_EXTENSIONS and file.is_file()


def _together(files: list[Path]) -> list[_Job]:
    """Files that were not named one by one: a video that cannot be read must not stop the images beside it."""
    jobs: list[_Job] = []
    missing = None
    for file in files:
        try:
            jobs.append(_of_file(file))
        except MissingError as error:
            missing = error
            jobs.append(partial(Item, None, str(file), DataError(str(error))))
    if missing is not None and all(map(_is_video, files)):
        raise missing
    return jobs


def _of_file(path: str | Path) -> _Job:
    if not _is_video(Path(path)):
        return partial(_read, str(path), str(path))
    try:
        import av
    except ImportError as error:
        raise MissingError(f"{path}: reading videos needs PyAV: pip install 'twostage[video]'") from error
    return _frames(av, str(path))


def _read(image: str | Image.Image | bytes, path: str | None) -> Item:
    try:
        return Item(read_image(image), path)
    except DataError as error:
        return Item(None, path, error)


def _frames(av: Any, path: str) -> Iterator[Item]:
    """The frames of a video's first video stream, upright as players show them.

    A broken video ends with an item that carries the error.
    """
    number = 0
    try:
        with av.open(path) as container:
            if not container.streams.video:
                yield Item(None, path, DataError(f"{path}: holds no video stream."))
                return
            for number, frame in enumerate(container.decode(video=0)):
                quarters = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise, as phones note them
                upright = np.rot90(frame.to_ndarray(format="rgb24"), quarters)
                yield Item(np.ascontiguousarray(upright), f"{path}#{number}")
    except (av.FFmpegError, OSError) as error:
        yield Item(None, path, DataError(f"{path}: cannot be decoded after frame {number} ({error})."))


def _lines() -> Iterator[str]:
    for raw in sys.stdin:
        line = raw.strip("\r\n")
        if any(ord(character) < 32 for character in line):
            raise DataError("Standard input holds no paths, one per line, but other bytes. Give the path of an image.")
        if line.strip():
            yield line


def _is_array(source: Any) -> bool:
    # There can be no tensor where torch was not imported, and nothing here imports it.
    torch = sys.modules.get("torch")
    return isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor))


def _array(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """RGB [h, w, 3] of uint8 from an array that is that already or grey, or from a tensor [3, h, w]."""
    if not isinstance(image, np.ndarray):
        return _tensor(image)
    shape = tuple(image.shape)
    if image.dtype != np.uint8:
        raise UsageError(f"An array of {image.dtype} {shape} is not an image: give uint8, {_to_uint8(image)}.")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or 0 in image.shape:
        mend = " Channels come last: image.transpose(1, 2, 0)." if image.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise UsageError(f"An array {shape} is not an image: give RGB [h, w, 3] or grey [h, w].{mend}")
    return np.ascontiguousarray(image[:, :, :3])


def _to_uint8(image: np.ndarray) -> str:
    """How an array of another type becomes uint8, by the range of its values: a cast alone would wrap around."""
    if image.dtype.kind == "b":
        return "for instance image.astype('uint8') * 255"
    low, high = (float(image.min()), float(image.max())) if image.size else (0.0, 0.0)
    values = f"its values run from {low:g} to {high:g}"
    if low < 0 or not np.isfinite(high):
        return f"{values}: shift and scale them to 0 to 255 first"
    if high <= 1 and image.dtype.kind == "f":
        return "for instance (image * 255).round().astype('uint8')"
    if high <= 255:
        return f"{values}: image.round().astype('uint8')" if image.dtype.kind == "f" else "image.astype('uint8')"
    white = 2 ** max(8, int(high).bit_length()) - 1
    return f"{values}: if {white} is white, (image * (255 / {white})).round().astype('uint8')"


def _tensor(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[0] != 3 or 0 in shape:
        mend = " Channels come first: image.permute(2, 0, 1)." if len(shape) == 3 and shape[2] == 3 else ""
        raise UsageError(f"A tensor {shape} is not an image: give RGB [3, h, w].{mend}")
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float()
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise UsageError(f"A tensor of floats from {low:g} to {high:g} is not an image: give 0 to 1, or uint8.")
        image = (image * 255).round()
    elif str(image.dtype) != "torch.uint8":
        raise UsageError(f"A tensor of {image.dtype} is not an image: give uint8, or floats from 0 to 1.")
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy().astype(np.uint8))


def _decode(jobs: Iterator[_Job], ahead: int) -> Iterator[Item]:
    """Runs jobs in order, `ahead` of them in the background; a video's frames come one by one, in its place."""
    if ahead < 1:
        for job in jobs:
            yield from [job()] if callable(job) else job
        return
    waiting: deque[Future[Item] | Iterator[Item]] = deque()
    with ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="twostage-decode") as pool:
        for job in jobs:
            waiting.append(pool.submit(job) if callable(job) else job)
            if len(waiting) > ahead:
                yield from _done(waiting.popleft())
        while waiting:
            yield from _done(waiting.popleft())


def _done(job: "Future[Item] | Iterator[Item]") -> Iterable[Item]:
    return [job.result()] if isinstance(job, Future) else job
