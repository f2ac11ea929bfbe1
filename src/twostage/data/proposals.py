"""Proposals for every image of a split, from selective search, sliding windows or a file.

Letters: M images of the split, B boxes of all of them.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from twostage.atomic import write_bytes
from twostage.data.dataset import Dataset
from twostage.data.files import text_name
from twostage.errors import DataError, MissingError, UsageError
from twostage.shell import command

log = logging.getLogger("twostage.data")

KEY = "twostage-proposals"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class ProposalSet:
    """The boxes of image i are rows `offsets[i]` to `offsets[i + 1]`, best first; xyxy on the upright original image.

    `scores` fall within an image; for a source that ranks without scores they are minus the rank. `source` describes
    where the boxes are from.
    """

    boxes: Float32[np.ndarray, "b 4"]
    scores: Float32[np.ndarray, " b"]
    offsets: Int64[np.ndarray, " m1"]
    source: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, images: Iterable[tuple[np.ndarray, np.ndarray]], source: str) -> "ProposalSet":
        """From the boxes and scores of each image; sorted by score, equal ones in the given order."""
        boxes, scores, counts = [], [], [0]
        for some, score in images:
            order = np.argsort(-score, kind="stable")
            boxes.append(some[order])
            scores.append(score[order])
            counts.append(len(order))
        return cls(
            np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float32),
            np.concatenate([np.zeros(0), *scores]).astype(np.float32),
            np.cumsum(counts, dtype=np.int64),
            source,
        )

    def best(self, index: int, count: int) -> tuple[Float32[np.ndarray, "p 4"], Float32[np.ndarray, " p"]]:
        """At most `count` boxes of an image, and their scores; views, so do not write to them."""
        start = int(self.offsets[index])
        rows = slice(start, min(start + count, int(self.offsets[index + 1])))
        return self.boxes[rows], self.scores[rows]

    def select(self, indices: Sequence[int]) -> "ProposalSet":
        """The proposals of only these images, in this order."""
        everything = len(self.boxes)
        return ProposalSet.of((self.best(i, everything) for i in indices), self.source)


def merge_proposals(shares: Sequence[ProposalSet]) -> ProposalSet:
    """The proposals of all images, from sets that each have those of some images."""
    first, *_ = shares
    every = len(first.boxes) + sum(len(share.boxes) for share in shares)
    parts = ([share.best(i, every) for share in shares] for i in range(len(first)))
    return ProposalSet.of(
        ((np.concatenate([b for b, _ in some]), np.concatenate([s for _, s in some])) for some in parts), first.source
    )


def write_proposals(path: Path, splits: Sequence[tuple[Dataset, ProposalSet]], keep: int) -> None:
    """Write the proposals of splits of one data set, at most `keep` boxes per image, as a safetensors file."""
    parts = [proposals.best(i, keep) for dataset, proposals in splits for i in range(len(dataset))]
    whole = ProposalSet.of(parts, splits[0][1].source)
    content = {
        "format": FORMAT,
        "source": whole.source,
        "splits": {
            dataset.split: {
                "images": [dataset.file_name(i) for i in range(len(dataset))],
                "sizes": dataset.sizes.tolist(),
            }
            for dataset, _ in splits
        },
    }
    tensors = {"boxes": whole.boxes, "scores": whole.scores, "offsets": whole.offsets}
    write_bytes(path, save(tensors, metadata={KEY: json.dumps(content)}))


def is_proposals_file(path: Path) -> bool:
    """Whether this is a file of proposals and not, for instance, of weights."""
    if path.suffix == ".json":
        return True
    try:
        with text_name(path) as name, safe_open(name, "np") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_proposals(path: Path, dataset: Dataset) -> ProposalSet:
    """The proposals of a split's images from a file of `write_proposals`, or a JSON list in the form of COCO's results.

    The entries of the JSON are {"image_id" or "file_name", "bbox": [x, y, w, h], "score"}, and "split" if several
    splits share ids or names; an image without entries has no proposals. A file may contain more images than the split.
    Boxes over the border of an image are clipped, with a warning. Raises MissingError if the file does not exist,
    DataError for values that are not numbers, boxes without area or entirely outside their image, and missing images.
    """
    if not path.exists():
        bring = command(
            "twostage", "data", "proposals", dataset.root, "--source", "selective_search", "--out", "FOLDER"
        )
        raise MissingError(f"{path}: no such proposals file. Make one: {bring}")
    if not path.is_file():
        raise UsageError(
            f"{path}: not a proposals file. Name the file itself, such as FOLDER/selective_search.safetensors."
        )
    read = _read_json if path.suffix == ".json" else _read_own
    proposals = read(path, dataset)
    return _checked(path, proposals, dataset)


def require_distinct_splits(path: Path, one: Dataset, other: Dataset) -> None:
    """Raises DataError for a JSON file without "split" if two splits share ids or names: its entries are ambiguous."""
    if path.suffix != ".json" or not path.is_file():
        return
    ids = set(one.image_ids.tolist()) & set(other.image_ids.tolist())
    names = {one.file_name(i) for i in range(len(one))} & {other.file_name(i) for i in range(len(other))}
    if (ids or names) and '"split"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise DataError(
            f"{path}: the splits {one.split!r} and {other.split!r} share ids or names of images, and its entries do "
            'not state their split. Add "split" to each.'
        )


def warn_few_proposals(proposals: ProposalSet, dataset: Dataset, wanted: int) -> None:
    """Log how many images have fewer boxes than wanted."""
    counts = np.diff(proposals.offsets)
    none, fewer = np.flatnonzero(counts == 0), np.flatnonzero((counts > 0) & (counts < wanted))
    if len(none):
        log.warning(
            "%s: %d of %d images have no proposals, so nothing will be detected there (%s).",
            *(proposals.source, len(none), len(counts), _some(dataset, none)),
        )
    if len(fewer):
        log.info(
            "%s: %d of %d images have fewer than %d proposals, the fewest %d.",
            *(proposals.source, len(fewer), len(counts), wanted, counts[fewer].min()),
        )


def _read_own(path: Path, dataset: Dataset) -> ProposalSet:
    try:
        with text_name(path) as name, safe_open(name, "np") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise DataError(
                    f"{path}: a safetensors file, but not one of proposals: its header has no {KEY!r} entry. "
                    "`twostage data proposals` writes them."
                )
            content = json.loads(metadata[KEY])
            boxes, scores, offsets = (file.get_tensor(name) for name in ("boxes", "scores", "offsets"))
        sections, source = content["splits"], str(content["source"])
        names = [(split, name) for split, section in sections.items() for name in section["images"]]
        sizes = [size for section in sections.values() for size in section["sizes"]]
        shapes = boxes.shape, scores.shape, offsets.shape, len(sizes)
        if content["format"] > FORMAT:
            raise ValueError("written by a later version: update twostage")
        if shapes != ((len(boxes), 4), (len(boxes),), (len(names) + 1,), len(names)):
            raise ValueError(f"shapes {shapes} for {len(names)} images")
        if offsets[0] != 0 or offsets[-1] != len(boxes) or (np.diff(offsets) < 0).any():
            raise ValueError("offsets that do not rise from 0 to the number of boxes")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: not a readable file of proposals ({error}). Make it again.") from None
    # Several splits may have an image of one name; if this split is not in the file, its images may be in another.
    known = dataset.split in sections
    row_of = {name: row for row, (split, name) in enumerate(names) if split == dataset.split or not known}
    _require_images(path, dataset, row_of)
    rows = [row_of[dataset.file_name(i)] for i in range(len(dataset))]
    for i, row in enumerate(rows):
        if list(sizes[row]) != dataset.sizes[i].tolist():
            raise DataError(
                f"{path}: {names[row][1]}: was {sizes[row][1]} x {sizes[row][0]} when proposals were made, and is "
                f"{dataset.sizes[i][1]} x {dataset.sizes[i][0]}: they are those of another image. Make them again."
            )
    return ProposalSet(boxes, scores, offsets.astype(np.int64), source).select(rows)


def _read_json(path: Path, dataset: Dataset) -> ProposalSet:
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}).") from None
    if not isinstance(entries, list):
        raise DataError(f'{path}: must hold a list of {{"image_id", "bbox": [x, y, w, h], "score"}}.')
    by_id = {image_id: i for i, image_id in enumerate(dataset.image_ids.tolist())}
    by_name = {dataset.file_name(i): i for i in range(len(dataset))}
    boxes: dict[int, list[list[float]]] = {}
    for number, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        if fields.get("split", dataset.split) != dataset.split:
            continue
        name, image_id = fields.get("file_name"), fields.get("image_id")
        by_number = by_id.get(image_id) if isinstance(image_id, int) else None
        image = by_name.get(name) if isinstance(name, str) else by_number
        row = _row(fields)
        if row is None or (image is None and not isinstance(fields.get("file_name", image_id), str | int)):
            raise DataError(
                f"{path}: entry {number} (counted from 0) is not a proposal: it needs an image_id or file_name, a bbox "
                "of four numbers [x, y, w, h] and a score."
            )
        if image is not None:  # else another split's
            boxes.setdefault(image, []).append(row)
    if not boxes:
        _require_images(path, dataset, ())
    rows = [np.array(boxes.get(i, []), dtype=np.float64).reshape(-1, 5) for i in range(len(dataset))]
    return ProposalSet.of(
        ((np.concatenate([r[:, :2], r[:, :2] + r[:, 2:4]], axis=1), r[:, 4]) for r in rows), f"the file {path}"
    )


def _row(entry: Mapping[str, Any]) -> list[float] | None:
    """x, y, w, h and score if they are numbers, else None."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return None
    row = [*box, entry.get("score")]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in row):
        return None
    try:
        return [float(v) for v in row]
    except OverflowError:  # integers in JSON are unbounded
        return None


def _require_images(path: Path, dataset: Dataset, known: Iterable[str]) -> None:
    known = set(known)
    missing = np.array([i for i in range(len(dataset)) if dataset.file_name(i) not in known], dtype=np.int64)
    if len(missing):
        raise DataError(
            f"{path}: has no proposals for {len(missing)} of the {len(dataset)} images of the split "
            f"{dataset.split!r} ({_some(dataset, missing)}): it belongs to other images. Name the file of this split."
        )


def _checked(path: Path, proposals: ProposalSet, dataset: Dataset) -> ProposalSet:
    """The same with boxes clipped to their images. Raises DataError for a box that is not one on its image."""
    owner = np.repeat(np.arange(len(proposals)), np.diff(proposals.offsets))
    sizes = dataset.sizes[owner].astype(np.float32)
    limits = sizes[:, [1, 0, 1, 0]]
    clipped = np.clip(proposals.boxes, 0, limits)
    sides, left = (b[:, 2:] - b[:, :2] for b in (proposals.boxes, clipped))
    wrong = {
        "is not a number": ~(np.isfinite(proposals.boxes).all(axis=1) & np.isfinite(proposals.scores)),
        "has no area": (sides <= 0).any(axis=1),
        "lies outside the image": (left <= 0).any(axis=1),
    }
    for what, rows in wrong.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            image = int(owner[row])
            place = row - int(proposals.offsets[image])
            height, width = dataset.sizes[image].tolist()
            raise DataError(
                f"{path}: {dataset.file_name(image)} ({width} x {height}): proposal {place} (counted from 0), "
                f"{proposals.boxes[row].tolist()} with score {proposals.scores[row]:g}, {what}; "
                f"{int(rows.sum())} such in total. Make the file again without them."
            )
    over = (clipped != proposals.boxes).any(axis=1)
    if over.any():
        log.warning("%s: %d proposals reach over the border of their image and are clipped.", path, int(over.sum()))
    return ProposalSet(clipped, proposals.scores, proposals.offsets, proposals.source)


def _some(dataset: Dataset, images: np.ndarray) -> str:
    """A few names of images."""
    names = [dataset.file_name(int(i)) for i in images[:3]]
    return ", ".join(names) + (" ..." if len(images) > 3 else "")
