"""From what a reader finds to a `Dataset`: the one place where sizes are measured, boxes judged and repaired.

A reader adds images and objects in any order and reports what it cannot add; `build` does the rest, for every layout
alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, FaultyDataError, OnError, fault
from twostage.data.files import display_path
from twostage.data.flat import NO_MASK, NONE, RLE, FlatMasks, FlatStrings, Mask, to_rle
from twostage.data.images import SIDEWAYS, Header, probe
from twostage.data.upright import turn_boxes, turn_mask
from twostage.errors import DataError
from twostage.ops import masks as rle_masks

# Pixels by which rounded coordinates may reach over the border without being a fault.
SLACK = 0.1
# Pixels; no image is larger, and float32 no longer resolves single pixels beyond.
FARTHEST = 1e7
_NAMED = 5  # objects without a mask that a message lists; there may be thousands


# image, source, label, annotation id, crowd, difficult, area, x1, y1, x2, y2
Row = tuple[int, int, int, int, int, int, float, float, float, float, float]


@dataclass
class Table:
    """The objects of a split as columns, in the order of `Row`; boxes are xyxy in float64."""

    image: Int64[np.ndarray, " b"]
    source: Int64[np.ndarray, " b"]
    label: Int64[np.ndarray, " b"]
    annotation_id: Int64[np.ndarray, " b"]
    crowd: Int64[np.ndarray, " b"]
    difficult: Int64[np.ndarray, " b"]
    area: Float64[np.ndarray, " b"]
    boxes: Float64[np.ndarray, "b 4"]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Table":
        """The columns of these rows."""
        columns = list(zip(*rows, strict=True)) or [()] * 11
        image, source, label, annotation_id, crowd, difficult = (np.array(c, dtype=np.int64) for c in columns[:6])
        area, boxes = np.array(columns[6], np.float64), np.array(columns[7:], np.float64).T.reshape(-1, 4)
        return cls(image, source, label, annotation_id, crowd, difficult, area, boxes)

    def take(self, rows: np.ndarray) -> "Table":
        """These rows, copied."""
        return Table(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass
class Builder:
    """Collects the images and objects of one split.

    `place(image, source)` returns the annotation file and the object in it for messages; `source` is the number that
    the reader gave the object. `header_of` reads the size of an image. A box no wider or no higher than `thin` has no
    area (1 where coordinates include the last pixel). Without `repair`, boxes of finite numbers stay as
    annotated, as the tools that define the metrics read them.
    """

    root: Path
    layout: str
    split: str
    names: tuple[str, ...]
    category_ids: Sequence[int]
    place: Callable[[int, int], tuple[str, str]]
    header_of: Callable[[str], Header] = probe
    require_images: bool = True
    thin: float = 0.0
    repair: bool = True
    faults: list[Fault] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _paths: list[str] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)
    _stated: list[tuple[int, int]] = field(default_factory=list)
    _bad: set[int] = field(default_factory=set)
    _rows: list[Row] = field(default_factory=list)
    _masks: list[Mask] = field(default_factory=list)
    _measured: tuple[np.ndarray, np.ndarray] | None = None

    def add_image(self, name: str, path: Path | str, image_id: int, stated: tuple[int, int] = (0, 0)) -> int:
        """Adds an image and returns its index; `stated` is the annotation's (height, width), 0 where it has none."""
        self._names.append(name)
        self._paths.append(str(path))
        self._ids.append(image_id)
        self._stated.append(stated)
        return len(self._ids) - 1

    @property
    def file_names(self) -> Sequence[str]:
        """The names of the images added so far."""
        return self._names

    @property
    def count(self) -> int:
        """How many objects were added so far."""
        return len(self._rows)

    def exclude(self, image: int) -> None:
        """Leaves out an image that cannot be used, for a reason already reported."""
        self._bad.add(image)

    @property
    def stated(self) -> Sequence[tuple[int, int]]:
        """The sizes that the annotations state, 0 where they do not."""
        return self._stated

    def add_object(
        self,
        image: int,
        box: tuple[float, float, float, float],
        label: int,
        *,
        source: int,
        annotation_id: int,
        crowd: bool = False,
        difficult: bool = False,
        area: float = np.nan,
        mask: Mask = NO_MASK,
    ) -> None:
        """Adds an object: `box` is xyxy on the image as annotated; an unknown `area` is NaN."""
        self._rows.append((image, source, label, annotation_id, int(crowd), int(difficult), area, *box))
        self._masks.append(mask)

    def report(self, code: str, file: object, where: str, message: str, fix: str, *, image: int | None = None) -> None:
        """Records a fault; with `image`, that image cannot be used and is left out when faults are skipped."""
        self.faults.append(fault(code, file, where, message, fix))
        if image is not None:
            self._bad.add(image)

    def build(self, on_error: OnError = "default") -> Dataset:
        """The data set. Raises FaultyDataError with all faults unless `on_error` allows them."""
        self._judge_names()
        table = Table.of(self._rows)
        sizes, turns = self.measure()
        order = np.argsort(table.image, kind="stable")
        table, masks = table.take(order), [self._masks[i] for i in order]
        self._turn(table, masks, sizes, turns)
        keep = self._judge(table, sizes) & self._fitting(table, masks, sizes)
        good = np.ones(len(self._ids), bool)
        good[list(self._bad)] = False
        keep &= good[table.image]
        rows = np.flatnonzero(keep)
        table, masks = table.take(rows), [masks[i] for i in rows]
        flat = self._masks_of(table, masks, sizes)
        self._stop(on_error)
        return self._dataset(table, flat, sizes, good)

    def _judge_names(self) -> None:
        for name in self.names:
            if not name.strip() or not name.isprintable():
                fix = "Write letters, digits, punctuation and spaces: it is drawn, printed and written to files"
                self.report(
                    "broken-record", self.split, "", f"the class name {name!r} must be one line of printable text", fix
                )

    def measure(self) -> tuple[np.ndarray, np.ndarray]:
        """Upright sizes [M, 2], and the EXIF orientation of images annotated before they were turned, else 1 [M].

        Reads the images when first called, after all of them were added.
        """
        if self._measured is None:
            self._measured = self._measure()
        return self._measured

    def _measure(self) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.array(self._stated, dtype=np.int32).reshape(-1, 2)
        turns = np.ones(len(sizes), dtype=np.int64)
        for image, path in enumerate(self._paths):
            if image in self._bad:
                continue
            stated = self._stated[image]
            if not self.require_images and min(stated) > 0:
                continue
            try:
                header = self.header_of(path)
            except DataError as error:
                self._report_unreadable(image, path, error)
                continue
            size = header.height, header.width
            sizes[image] = size
            if min(stated) > 0 and stated != size:
                turned = header.orientation in SIDEWAYS and stated == size[::-1]
                turns[image] = header.orientation if turned else 1
                self._report_size(image, stated, size, turned)
        return sizes, turns

    def _report_unreadable(self, image: int, path: str, error: DataError) -> None:
        code, message = "unreadable-image", str(error).removeprefix(f"{path}: ").rstrip(".")
        fix = "Replace the image, or remove it from the data set"
        if isinstance(error.__cause__, FileNotFoundError):
            code = "missing-image" if self.require_images else "missing-size"
            message, fix = "the image does not exist", "Add the file, correct its name, or remove the image"
        self.report(code, display_path(path, self.root), "", message, fix, image=image)

    def _report_size(self, image: int, stated: tuple[int, int], size: tuple[int, int], turned: bool) -> None:
        states = f"the annotation states {stated[1]} x {stated[0]} (width x height)"
        if turned:
            message = f"{states}, the image before its EXIF tag turns it; boxes and masks are turned with it"
            self.report("rotated-annotation", display_path(self._paths[image], self.root), "", message, "Nothing to do")
        else:
            message = f"{states}, the image has {size[1]} x {size[0]}"
            fix = "Check that the boxes belong to this image, then correct the size"
            self.report("size-mismatch", display_path(self._paths[image], self.root), "", message, fix)

    def _turn(self, table: Table, masks: list[Mask], sizes: np.ndarray, turns: np.ndarray) -> None:
        for row in np.flatnonzero(turns[table.image] > 1):
            image = table.image[row]
            width, height = sizes[image].tolist()
            turn = int(turns[image])
            table.boxes[row] = turn_boxes(table.boxes[row][None], turn, height, width)[0]
            masks[row] = turn_mask(masks[row], turn, height, width)

    def _judge(self, table: Table, sizes: np.ndarray) -> Bool[np.ndarray, " b"]:
        """Which objects can be used; their boxes are clipped in place, and every unusable box is reported."""
        boxes = table.boxes
        height, width = sizes[table.image].astype(np.float64).T.reshape(2, -1)
        usable = ~np.isin(table.image, list(self._bad))
        finite = (np.abs(boxes) < FARTHEST).all(axis=1)  # NaN is not
        sides = boxes[:, 2:] - boxes[:, :2] if len(boxes) else np.zeros((0, 2))
        inverted = finite & (sides < self.thin).any(axis=1)
        thin = finite & ~inverted & (sides <= self.thin).any(axis=1)
        limits = np.stack([width, height, width, height], axis=1)
        clipped = np.clip(boxes, 0, limits)
        # In float32, as it will be stored, a sliver has no area left.
        stored = clipped.astype(np.float32)
        flat = finite & ~inverted & ~thin & (stored[:, 2:] <= stored[:, :2]).any(axis=1)
        beyond = (boxes[:, :2] >= limits[:, :2]).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
        outside, thin = flat & beyond, thin | (flat & ~beyond)
        over = finite & ~inverted & ~thin & ~outside & (np.abs(boxes - clipped) > SLACK).any(axis=1)
        dropped, cut = ("dropped", "clipped") if self.repair else ("kept as it is", "kept as it is")
        flat_words = "the box has no area" if self.thin == 0 else "the box begins and ends at the same pixel"
        for code, rows, message, fix in (
            ("box-not-numbers", ~finite, "the box is not four finite numbers", "Correct the box, or remove the object"),
            ("inverted-box", inverted, f"the box is inverted; {dropped}", "Exchange its ends, or remove the object"),
            ("zero-area-box", thin, f"{flat_words}; {dropped}", "Draw the box again, or remove the object"),
            ("box-outside", outside, f"the box lies outside the image; {dropped}", "Correct or remove the object"),
            ("box-partly-outside", over, f"the box reaches over the border; {cut}", "Clip it in the annotation"),
        ):
            for row in np.flatnonzero(rows & usable):
                self._report_box(code, table, int(row), (width[row], height[row]), message, fix)
        if not self.repair:
            return np.asarray(finite)
        table.boxes[:] = np.where(np.isfinite(clipped), clipped, 0)
        return np.asarray(finite & ~inverted & ~thin & ~outside)

    def _fitting(self, table: Table, masks: list[Mask], sizes: np.ndarray) -> Bool[np.ndarray, " b"]:
        """Which objects have no RLE, or one of the size of their image; the others are reported."""
        fits = np.ones(len(masks), dtype=bool)
        for row, mask in enumerate(masks):
            image = int(table.image[row])
            if mask.kind == RLE and image not in self._bad and mask.size != tuple(sizes[image].tolist()):
                fits[row] = False
                file, where = self.place(image, int(table.source[row]))
                message = f"the mask has {mask.size[1]} x {mask.size[0]} pixels, the image {sizes[image, 1]} x "
                fix = "Make the mask for this image, or remove it"
                self.report("broken-mask", file, where, f"{message}{sizes[image, 0]}", fix)
        return fits

    def _report_box(self, code: str, table: Table, row: int, size: tuple[float, float], message: str, fix: str) -> None:
        file, where = self.place(int(table.image[row]), int(table.source[row]))
        box = ", ".join(f"{v:.7g}" for v in table.boxes[row])
        text = f"{message}: xyxy [{box}] on {size[0]:g} x {size[1]:g}"
        self.report(code, file, where, text, fix)

    def _masks_of(self, table: Table, masks: list[Mask], sizes: np.ndarray) -> FlatMasks | None:
        """All masks; fills in the areas that were not stated: the mask's if there is one, else the box's."""
        missing = np.array([m.kind == NONE for m in masks], dtype=bool)
        unknown = np.isnan(table.area)
        for row in np.flatnonzero(unknown & ~missing):
            table.area[row] = rle_masks.area(to_rle(masks[row], *sizes[table.image[row]].tolist()))
        sides = (table.boxes[:, 2:] - table.boxes[:, :2]).clip(min=0)
        table.area[:] = np.where(np.isnan(table.area), sides.prod(axis=1), table.area)
        if missing.all():
            return None
        trained = missing & (table.crowd == 0) & (table.difficult == 0)
        if trained.any():
            rows = np.flatnonzero(trained)
            named = [": ".join(self.place(int(table.image[row]), int(table.source[row]))) for row in rows[:_NAMED]]
            named += [f"and {len(rows) - _NAMED} more"] * (len(rows) > _NAMED)
            which = ", ".join(named)
            message = f"{len(rows)} of {len(masks)} objects have no mask ({which}): only their boxes are used"
            fix = "Add the masks, or train a model with masks with --on-error skip"
            self.report("missing-mask", self.split, "", message, fix)
        return FlatMasks.of(masks)

    def _stop(self, on_error: OnError) -> None:
        stopping = {"default": ("error",), "fail": ("error", "repair"), "skip": ()}[on_error]
        found = [f for f in self.faults if f.severity in stopping]
        if found:
            heading = f"{self.root}: faults in the split {self.split!r} ({self.layout} layout)."
            raise FaultyDataError(f"{heading} --on-error skip leaves out the faulty images and objects.", found)

    def _dataset(self, table: Table, masks: FlatMasks | None, sizes: np.ndarray, good: np.ndarray) -> Dataset:
        images = np.flatnonzero(good)
        counts = np.bincount(table.image, minlength=len(good))[images]
        return Dataset(
            root=self.root,
            layout=self.layout,
            split=self.split,
            names=self.names,
            category_ids=np.array(self.category_ids, dtype=np.int64),
            image_ids=np.array(self._ids, dtype=np.int64)[images],
            sizes=sizes[images],
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
            boxes=table.boxes.astype(np.float32),
            labels=table.label,
            crowd=table.crowd.astype(bool),
            difficult=table.difficult.astype(bool),
            areas=table.area,
            annotation_ids=table.annotation_id,
            masks=masks,
            files=FlatStrings.of([self._names[i] for i in images]),
            paths=FlatStrings.of([self._paths[i] for i in images]),
            faults=tuple(self.faults),
        )
