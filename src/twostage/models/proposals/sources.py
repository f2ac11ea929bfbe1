"""Proposals without a network, for one image or a whole split, with a cache.

The cache holds one small file per image, named by the image's content, in a folder named by the source's settings: an
interrupted run continues where it stopped, equal images are searched once, and a changed image is searched again.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float32, UInt8

from twostage.atomic import write_bytes
from twostage.data.dataset import Dataset
from twostage.data.images import read_image
from twostage.data.proposals import ProposalSet
from twostage.errors import DataError
from twostage.folders import cache_folder, made_in_cache
from twostage.models.component import Count, short
from twostage.models.proposals.selective_search import WIDTH, opencv, selective_search
from twostage.models.proposals.sliding_window import sliding_windows

log = logging.getLogger("twostage.proposals")

Name = Literal["selective_search", "selective_search_quality", "sliding_window"]
NAMES: tuple[Name, ...] = get_args(Name)
_VERSION = 1  # increased when a source gives other boxes for the same settings


@dataclass(frozen=True)
class ProposalConfig:
    """Where proposals come from: the RPN ("network"), a `Source`, or a file; and the number that each image keeps."""

    source: Literal["network", "selective_search", "selective_search_quality", "sliding_window", "file"] = short(
        "network", "proposals"
    )
    keep_train: Count = short(2000, "rpn_keep_train")  # after NMS, all levels together
    keep_test: Count = short(1000, "rpn_keep_test")


@dataclass(frozen=True)
class Source:
    """A way to propose boxes from pixels alone; selective search shrinks wider images to `width` pixels."""

    name: Name
    seed: int = 0
    width: int = WIDTH

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "p 4"]:
        """The boxes of an image (RGB), xyxy pixels, best first. Raises MissingError without the extra `lineage`."""
        if self.name == "sliding_window":
            return sliding_windows(*image.shape[:2], seed=self.seed)
        mode: Literal["fast", "quality"] = "fast" if self.name == "selective_search" else "quality"
        return selective_search(image, mode, seed=self.seed, width=self.width)

    @property
    def key(self) -> str:
        """The name of the cache folder, different for different settings."""
        by = "" if self.name == "sliding_window" else opencv().__version__
        settings = json.dumps(asdict(self) | {"version": _VERSION, "opencv": by}, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


def propose(
    source: Source,
    dataset: Dataset,
    *,
    folder: Path | None = None,
    threads: int | None = None,
    after_image: Callable[[int, int], None] = lambda done, all: None,
) -> ProposalSet:
    """The proposals of every image of a split, read from the cache `folder` where they exist.

    Images are searched in parallel `threads` (default: one per core), since OpenCV releases the GIL. Of several
    processes that need the proposals of one split, one searches and the others wait for it. `after_image` is called
    with the number done and the number of all. Raises DataError for an image that cannot be read.
    """
    place = made_in_cache((folder or cache_folder("proposals")) / source.key)
    boxes: list[np.ndarray] = []
    name = f"{dataset.root.absolute()}\n{dataset.split}".encode(errors="surrogateescape")  # paths need not be text
    which = hashlib.sha256(name).hexdigest()[:16]
    with _locked(place / f".{which}.lock", dataset.split), ThreadPoolExecutor(threads or _cores()) as pool:
        try:
            for one in pool.map(lambda i: _of_image(source, dataset.source(i), place), range(len(dataset))):
                boxes.append(one)
                after_image(len(boxes), len(dataset))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is done stays in the cache
            raise
    return ProposalSet.of(((b, ranks(len(b))) for b in boxes), source.name)


@contextmanager
def _locked(path: Path, split: str) -> Iterator[None]:
    """Only one process searches a split at a time; a process that has to wait logs it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process proposes boxes for these images; waiting for it", split)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def count_kept(source: Source, folder: Path | None = None) -> int:
    """The number of images whose proposals the cache holds."""
    return sum(1 for _ in ((folder or cache_folder("proposals")) / source.key).glob("*/*.npy"))


def ranks(count: int) -> Float32[np.ndarray, " {count}"]:
    """Scores of boxes that are ranked but not scored: minus the rank."""
    return -np.arange(count, dtype=np.float32)


def _of_image(source: Source, image: Path | np.ndarray, place: Path) -> np.ndarray:
    """The proposals of an image file or of an image in memory, cached by a hash of its content."""
    try:
        content = image.read_bytes() if isinstance(image, Path) else b"%d %d\0" % image.shape[:2] + image.tobytes()
    except OSError as error:
        raise DataError(f"{image}: cannot be read ({error.strerror or error}).") from None
    name = hashlib.sha256(content).hexdigest()
    cached = place / name[:2] / f"{name}.npy"
    boxes = _cached(cached)
    if boxes is None:
        boxes = source(_read(image, content) if isinstance(image, Path) else image)
        buffer = io.BytesIO()
        np.save(buffer, boxes)
        write_bytes(cached, buffer.getvalue())
    return boxes


def _read(path: Path, content: bytes) -> np.ndarray:
    try:
        return read_image(content)
    except DataError:
        return read_image(path)  # the same error, with the file's name


def _cached(path: Path) -> np.ndarray | None:
    """The boxes that an earlier run wrote; None where the file is missing or damaged."""
    try:
        boxes = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    good = boxes.dtype == np.float32 and boxes.ndim == 2 and boxes.shape[1] == 4 and np.isfinite(boxes).all()
    return boxes if good else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
