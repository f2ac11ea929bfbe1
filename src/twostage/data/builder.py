"""From what a reader finds to a `Dataset`: the one place where sizes are measured, boxes judged and repaired.

A reader adds images and objects in any order and reports what it cannot add; `build` does the rest, for every layout
alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from twostage.box_notations import UNITS
from twostage.data.dataset import Dataset
from twostage.data.faults import Fault, FaultyDataError, fault
from twostage.data.fields import Fields
from twostage.data.files import display_path
from twostage.data.flat import (
    NO_MASK,
    NONE,
    POLYGONS,
    RLE,
    FlatMasks,
    FlatStrings,
    Mask,
    pack_polygons,
    to_rle,
    unpack_polygons,
)
from twostage.data.images import SIDEWAYS
from twostage.data.layout import Options
from twostage.data.notation import CORNERS, Notation, Suspicion, suspicion
from twostage.data.resized import is_resized, on_stated
from twostage.data.upright import turn_boxes, turn_mask
from twostage.errors import DataError
from twostage.ops import masks as rle_masks

# Pixels by which rounded coordinates may reach over the border without being a fault.
SLACK = 0.1
# Pixels; no image is larger, and float32 no longer resolves single pixels beyond.
FARTHEST = 1e7
_NAMED = 5  # objects without a mask that a message lists; there may be thousands


# An object as it is annotated: its box is xyxy, its source the number that the reader gave it.
_OBJECT = np.dtype(
    [
        *((name, np.int64) for name in ("image", "source", "label", "annotation_id")),
        *((name, np.bool_) for name in ("crowd", "difficult")),
        ("area", np.float64),
        ("exact", np.bool_),
        ("box", np.float64, 4),
        ("mask", np.object_),
        ("fields", np.object_),
    ]
)


@dataclass
class Builder:
    """Collects the images and objects of one split.

    `place(image, source)` returns the annotation file and the object in it for messages; `source` is the number that
    the reader gave the object. Boxes are written in `notation`; `first` is the number of their first pixel, 1 where
    coordinates include the last one: a box no wider or no higher than that has no area, unless it is `exact`. Without
    `options.repair`, boxes of finite numbers stay as annotated, as the tools that define the metrics read them.
    `file_names` and `stated`, the annotations' (height, width) or 0, are those of the images added so far; the
    `excluded` ones cannot be used. `common` and `class_fields` are the other fields of the file and of its classes
    (`data.fields`).
    """

    root: Path
    layout: str
    split: str
    names: tuple[str, ...]
    category_ids: Sequence[int]
    place: Callable[[int, int], tuple[str, str]]
    options: Options
    notation: Notation = CORNERS
    first: int = 0
    faults: list[Fault] = field(default_factory=list)
    file_names: list[str] = field(default_factory=list)
    stated: list[tuple[int, int]] = field(default_factory=list)
    excluded: set[int] = field(default_factory=set)
    objects: list[tuple] = field(default_factory=list)
    common: str = ""
    class_fields: Sequence[str] = ()
    _paths: list[str] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)
    _image_fields: list[str] = field(default_factory=list)

    def add_image(
        self, name: str, path: Path | str, image_id: int, stated: tuple[int, int] = (0, 0), fields: str = ""
    ) -> int:
        """Adds an image and returns its index; `stated` is the annotation's (height, width), 0 where it has none."""
        self.file_names.append(name)
        self._paths.append(str(path))
        self._ids.append(image_id)
        self.stated.append(stated)
        self._image_fields.append(fields)
        return len(self._ids) - 1

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
        exact: bool = False,
        fields: str = "",
    ) -> None:
        """Adds an object: `box` as written, or `exact`, xyxy in pixels; an unknown `area` is NaN.

        Both are on the image as annotated. `fields` are its others (`data.fields`).
        """
        self.objects.append((image, source, label, annotation_id, crowd, difficult, area, exact, box, mask, fields))

    def report(self, code: str, file: object, where: str, message: str, fix: str, *, image: int | None = None) -> None:
        """Records a fault; with `image`, that image cannot be used and is left out when faults are skipped."""
        self.faults.append(fault(code, file, where, message, fix))
        if image is not None:
            self.excluded.add(image)

    def build(self) -> Dataset:
        """The data set. Raises FaultyDataError with all faults unless `options.on_error` allows them."""
        self._judge_names()
        sizes, turns = self.measured
        table = np.array(self.objects, dtype=_OBJECT)
        table = table[np.argsort(table["image"], kind="stable")]
        self._read_boxes(table, sizes, turns)
        self._turn(table, sizes, turns)
        keep = self._judge(table, sizes) & self._fitting(table, sizes)
        good = np.ones(len(self._ids), bool)
        good[list(self.excluded)] = False
        table = table[keep & good[table["image"]]]
        masks = self._masks_of(table, sizes)
        self._stop()
        return self._dataset(table, masks, sizes, good)

    def _read_boxes(self, table: np.ndarray, sizes: np.ndarray, turns: np.ndarray) -> None:
        """Make corners in pixels of the boxes as written; reports another notation that all of them seem to be in."""
        rows = np.flatnonzero(~table["exact"] & ~np.isin(table["image"], list(self.excluded)))
        images = table["image"][rows]
        as_annotated = np.where((turns[images] > 1)[:, None], sizes[images][:, ::-1], sizes[images])
        values = table["box"][rows]
        if self.options.boxes not in ("auto", "format"):
            self.notation, self.first = Notation.named(self.options.boxes), 0
            self._rescale(table, rows, as_annotated)
        boxes = self.notation.corners(values, as_annotated)
        boxes[:, :2] -= self.first
        table["box"][rows] = boxes
        if self.options.boxes == "auto" and not self._were_resized(table, sizes, turns):
            other = suspicion(values, as_annotated, self.notation)
            if other is not None:
                self._report_notation(table[rows], values, other)

    def _rescale(self, table: np.ndarray, rows: np.ndarray, sizes: np.ndarray) -> None:
        """Areas are not known in another unit; outlines are in that of the boxes."""
        if self.notation.unit == "pixels":
            return
        table["area"][rows] = np.nan
        for row, (height, width) in zip(rows.tolist(), sizes.tolist(), strict=True):
            mask = table["mask"][row]
            if mask.kind == POLYGONS:
                scale = np.array([width, height]) / UNITS[self.notation.unit]
                rings = [(ring.reshape(-1, 2) * scale).ravel() for ring in unpack_polygons(mask.data)]
                table["mask"][row] = Mask(POLYGONS, pack_polygons(rings))

    def _were_resized(self, table: np.ndarray, sizes: np.ndarray, turns: np.ndarray) -> bool:
        """Whether images were resized after boxes were drawn on them; that is reported once for all."""
        stated = np.where((turns > 1)[:, None], 0, np.array(self.stated, dtype=np.int32).reshape(-1, 2))
        stated[list(self.excluded)] = 0
        resized = is_resized(stated, sizes)
        some = table[resized[table["image"]]]
        images = some["image"]
        if self.notation.unit != "pixels" or not on_stated(some["box"], stated[images], sizes[images]):
            return False
        first = int(np.flatnonzero(resized)[0])
        (height, width), (was_height, was_width) = sizes[first].tolist(), self.stated[first]
        sizes_of_one = f"{width} x {height}, stated {was_width} x {was_height}"
        message = (
            f"{int(resized.sum())} of {len(resized)} images have another size than their annotations state, and the "
            f"boxes fit the stated one: {self.file_names[first]} has {sizes_of_one}"
        )
        fix = "Use the images that were annotated, or resize the boxes; --boxes format if they fit the images"
        self.report("resized-images", self.split, "", message, fix)
        return True

    def _report_notation(self, table: np.ndarray, values: np.ndarray, other: Suspicion) -> None:
        named = []
        for one, written in zip(table[other.examples], values[other.examples], strict=True):
            box = ", ".join(f"{v:.6g}" for v in written)
            named.append(f"[{box}] ({': '.join(self._place_of(one))})")
        message = f"all {len(table)} boxes look like {other.notation.words}"
        if other.misfits:
            share = f"{other.misfits} of {len(table)} boxes do not fit their image as {self.notation.words}"
            message = f"{share}, all do as {other.notation.words}"
        message += f": {'; '.join(named)}"
        fix = f"Use --boxes {other.notation} if so, --boxes format if they are right as they are"
        if self.layout == "memory":
            fix = f"Give {self.notation.words}, or on_error='skip' if they are right as they are"
        self.report("box-notation", self.split, "", message, fix)

    def _judge_names(self) -> None:
        for name in self.names:
            if not name.strip() or not name.isprintable():
                fix = "Write letters, digits, punctuation and spaces: it is drawn, printed and written to files"
                self.report(
                    "broken-record", self.split, "", f"the class name {name!r} must be one line of printable text", fix
                )

    @cached_property
    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Upright sizes [M, 2], and the EXIF orientation of images annotated before they were turned, else 1 [M].

        Reads the images when first used, after all of them were added.
        """
        sizes = np.array(self.stated, dtype=np.int32).reshape(-1, 2)
        turns = np.ones(len(sizes), dtype=np.int64)
        for image, path in enumerate(self._paths):
            if image in self.excluded:
                continue
            stated = self.stated[image]
            if not self.options.require_images and min(stated) > 0:
                continue
            try:
                header = self.options.header_of(path)
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
            code = "missing-image" if self.options.require_images else "missing-size"
            message, fix = "the image does not exist", "Add the file, correct its name, or remove the image"
        self.report(code, display_path(path, self.root), "", message, fix, image=image)

    def _report_size(self, image: int, stated: tuple[int, int], size: tuple[int, int], turned: bool) -> None:
        states = f"the annotation states {stated[1]} x {stated[0]} (width x height)"
        if turned:
            message = f"{states}, the image before its EXIF tag turns it; boxes and masks are turned with it, "
            message += "other fields, such as keypoints, are not"
            self.report("rotated-annotation", display_path(self._paths[image], self.root), "", message, "Nothing to do")
        else:
            message = f"{states}, the image has {size[1]} x {size[0]}"
            fix = "Check that the boxes belong to this image, then correct the size"
            self.report("size-mismatch", display_path(self._paths[image], self.root), "", message, fix)

    def _turn(self, table: np.ndarray, sizes: np.ndarray, turns: np.ndarray) -> None:
        for row in np.flatnonzero(turns[table["image"]] > 1):
            image = table["image"][row]
            width, height = sizes[image].tolist()
            turn = int(turns[image])
            table["box"][row] = turn_boxes(table["box"][row][None], turn, height, width)[0]
            table["mask"][row] = turn_mask(table["mask"][row], turn, height, width)

    def _judge(self, table: np.ndarray, sizes: np.ndarray) -> Bool[np.ndarray, " b"]:
        """Which objects can be used; their boxes are clipped in place, and every unusable box is reported."""
        boxes = table["box"]
        height, width = sizes[table["image"]].astype(np.float64).T
        usable = ~np.isin(table["image"], list(self.excluded))
        finite = (np.abs(boxes) < FARTHEST).all(axis=1)  # NaN is not
        sides = boxes[:, 2:] - boxes[:, :2]
        least = np.where(table["exact"], 0, self.first)[:, None]
        inverted = finite & (sides < least).any(axis=1)
        thin = finite & ~inverted & (sides <= least).any(axis=1)
        limits = np.stack([width, height, width, height], axis=1)
        clipped = np.clip(boxes, 0, limits)
        # In float32, as it will be stored, a sliver has no area left.
        stored = clipped.astype(np.float32)
        flat = finite & ~inverted & ~thin & (stored[:, 2:] <= stored[:, :2]).any(axis=1)
        beyond = (boxes[:, :2] >= limits[:, :2]).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
        outside, thin = flat & beyond, thin | (flat & ~beyond)
        over = finite & ~inverted & ~thin & ~outside & (np.abs(boxes - clipped) > SLACK).any(axis=1)
        dropped, cut = ("dropped", "clipped") if self.options.repair else ("kept as it is", "kept as it is")
        flat_words = "the box has no area" if self.first == 0 else "the box begins and ends at the same pixel"
        for code, rows, message, fix in (
            ("box-not-numbers", ~finite, "the box is not four finite numbers", "Correct the box, or remove the object"),
            ("inverted-box", inverted, f"the box is inverted; {dropped}", "Exchange its ends, or remove the object"),
            ("zero-area-box", thin, f"{flat_words}; {dropped}", "Draw the box again, or remove the object"),
            ("box-outside", outside, f"the box lies outside the image; {dropped}", "Correct or remove the object"),
            ("box-partly-outside", over, f"the box reaches over the border; {cut}", "Clip it in the annotation"),
        ):
            for row in np.flatnonzero(rows & usable):
                self._report_box(code, table, int(row), (width[row], height[row]), message, fix)
        if not self.options.repair:
            return np.asarray(finite)
        boxes[:] = np.where(np.isfinite(clipped), clipped, 0)
        return np.asarray(finite & ~inverted & ~thin & ~outside)

    def _fitting(self, table: np.ndarray, sizes: np.ndarray) -> Bool[np.ndarray, " b"]:
        """Which objects have no RLE, or one of the size of their image; the others are reported."""
        fits = np.ones(len(table), dtype=bool)
        for row, (image, mask) in enumerate(zip(table["image"].tolist(), table["mask"], strict=True)):
            if mask.kind == RLE and image not in self.excluded and mask.size != tuple(sizes[image].tolist()):
                fits[row] = False
                file, where = self.place(image, int(table["source"][row]))
                message = f"the mask has {mask.size[1]} x {mask.size[0]} pixels, the image {sizes[image, 1]} x "
                fix = "Make the mask for this image, or remove it"
                self.report("broken-mask", file, where, f"{message}{sizes[image, 0]}", fix)
        return fits

    def _report_box(
        self, code: str, table: np.ndarray, row: int, size: tuple[float, float], message: str, fix: str
    ) -> None:
        file, where = self._place_of(table[row])
        box = ", ".join(f"{v:.7g}" for v in table["box"][row])
        text = f"{message}: xyxy [{box}] on {size[0]:g} x {size[1]:g}"
        self.report(code, file, where, text, fix)

    def _place_of(self, one: np.void) -> tuple[str, str]:
        return self.place(int(one["image"]), int(one["source"]))

    def _masks_of(self, table: np.ndarray, sizes: np.ndarray) -> FlatMasks | None:
        """All masks; fills in the areas that were not stated: the mask's if there is one, else the box's."""
        missing = np.array([mask.kind == NONE for mask in table["mask"]], dtype=bool)
        areas = table["area"]
        unknown = np.isnan(areas)
        for row in np.flatnonzero(unknown & ~missing):
            areas[row] = rle_masks.area(to_rle(table["mask"][row], *sizes[table["image"][row]].tolist()))
        sides = (table["box"][:, 2:] - table["box"][:, :2]).clip(min=0)
        areas[:] = np.where(np.isnan(areas), sides.prod(axis=1), areas)
        if missing.all():
            return None
        trained = missing & ~table["crowd"] & ~table["difficult"]
        if trained.any():
            without = table[trained]
            named = [": ".join(self._place_of(one)) for one in without[:_NAMED]]
            named += [f"and {len(without) - _NAMED} more"] * (len(without) > _NAMED)
            which = ", ".join(named)
            message = f"{len(without)} of {len(table)} objects have no mask ({which}): only their boxes are used"
            fix = "Add the masks, or train a model with masks with --on-error skip"
            self.report("missing-mask", self.split, "", message, fix)
        return FlatMasks.of(table["mask"].tolist())

    def _stop(self) -> None:
        stopping = {"default": ("error",), "fail": ("error", "repair"), "skip": ()}[self.options.on_error]
        errors = [f for f in self.faults if f.severity in stopping]
        if errors:
            heading = f"{self.root}: faults in the split {self.split!r} ({self.layout} layout)."
            raise FaultyDataError(f"{heading} --on-error skip leaves out the faulty images and objects.", errors)

    def _dataset(self, table: np.ndarray, masks: FlatMasks | None, sizes: np.ndarray, good: np.ndarray) -> Dataset:
        images = np.flatnonzero(good)
        counts = np.bincount(table["image"], minlength=len(good))[images]
        return Dataset(
            root=self.root,
            layout=self.layout,
            split=self.split,
            names=self.names,
            category_ids=np.array(self.category_ids, dtype=np.int64),
            image_ids=np.array(self._ids, dtype=np.int64)[images],
            sizes=sizes[images],
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
            boxes=table["box"].astype(np.float32),
            labels=table["label"].copy(),
            crowd=table["crowd"].copy(),
            difficult=table["difficult"].copy(),
            areas=table["area"].copy(),
            annotation_ids=table["annotation_id"].copy(),
            masks=masks,
            files=FlatStrings.of([self.file_names[i] for i in images]),
            paths=FlatStrings.of([self._paths[i] for i in images]),
            faults=tuple(self.faults),
            fields=Fields.of(
                self.common,
                self.class_fields or [""] * len(self.names),
                [self._image_fields[i] for i in images],
                table["fields"].tolist(),
            ),
        )
