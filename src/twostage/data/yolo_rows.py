"""The rows of YOLO's label files: boxes and polygons, and what other tasks and tools write into them.

    class cx cy w h                       a box
    class x y x y x y ...                 a polygon
    class cx cy w h x y (v) ...           a box and keypoints (`kpt_shape` in data.yaml)
    class x y x y x y x y                 a rotated box, where all rows are rectangles of four corners
    class cx cy w h confidence (track)    a prediction
    class cx cy w h track                 a box of a video

All numbers are fractions of the image's size. Which of them a split has is a matter of all its rows together.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage.data.builder import Builder
from twostage.data.files import require_regular
from twostage.data.flat import NO_MASK, POLYGONS, Mask, pack_polygons

_SQUARE = 0.02  # of its size by which opposite sides of a rotated box may differ
_WITHIN = 0.02  # of the image by which keypoints may lie outside of their box
_FEW = 3  # rows at least by which a form is recognised
_MOST = 0.95  # of the rows with more than four numbers, which show another form
_SHARE = 0.05  # of the rows, which are of the last class at least where classes count from 1
_FIX = "Write `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`, as fractions of the image"


class Row(NamedTuple):
    """A row: its line, counted from 1, the class, and the numbers after it."""

    line: int
    label: int
    values: list[float]


Rows = list[list[Row]]  # of each image


class _Task(NamedTuple):
    """What rows of so many numbers after the class are, and how a box is made of them."""

    code: str
    counts: set[int]
    box: Callable[[list[float]], list[float]]
    message: str


def by_name(names: Sequence[str]) -> dict[str, int]:
    """The class ids by the names as rows may have them."""
    return {" ".join(name.split()): label for label, name in enumerate(names)}


def read(builder: Builder, path: Path, shown: str, image: int, label_of: Mapping[str, int]) -> Iterator[Row]:
    """The rows of a label file that are numbers after a class, its id or its name; the others are reported.

    A class may be one that the data set does not have: `of_known_classes` reports it. `label_of` is that of `by_name`.
    """
    try:
        require_regular(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        builder.report("unreadable-file", shown, "", f"the label file cannot be read: {error}", _FIX, image=image)
        return
    for line, row in enumerate(text.splitlines(), start=1):
        if not (fields := row.split()):
            continue
        where = f"line {line}"
        try:
            values = [float(v) for v in _after_name(fields, label_of)]
        except ValueError:
            builder.report("box-not-numbers", shown, where, f"{row[:80]!r} is not numbers", _FIX)
            continue
        if not all(map(math.isfinite, values)):
            builder.report("box-not-numbers", shown, where, f"{row[:80]!r} is not finite", _FIX)
        elif values[0] != int(values[0]):
            builder.report("unknown-class", shown, where, f"the class {fields[0]} is not a whole number", _FIX)
        else:
            yield Row(line, int(values[0]), values[1:])


def _after_name(fields: list[str], label_of: Mapping[str, int]) -> list[str]:
    """The fields with a class's number in the place of its name, which some tools write; of several words too."""
    if not fields[0][0].isalpha():
        return fields
    numbers = next((i for i in range(len(fields) - 1, -1, -1) if not _is_number(fields[i])), -1) + 1
    label = label_of.get(" ".join(fields[:numbers]))
    return fields if label is None else [str(label), *fields[numbers:]]


def _is_number(text: str) -> bool:
    return text[-1].isdigit() or text[-1] == "."


def of_known_classes(builder: Builder, rows: Rows, shown: Sequence[str]) -> Rows:
    """The rows of classes that the data set has; the others are reported, together where all count from 1."""
    count = len(builder.names)
    labels = {row.label for lines in rows for row in lines}
    strange = {label for label in labels if not 0 <= label < count}
    every = [row.label for lines in rows for row in lines]
    often = every.count(count) >= _SHARE * len(every)
    if strange == {count} and 0 not in labels and often and builder.options.boxes == "auto":
        examples = [f"{name}, line {row.line}" for name, lines in zip(shown, rows, strict=True) for row in lines]
        message = f"the classes of all {len(examples)} rows are from 1 to {count}, and the names count from 0: "
        fix = "Subtract 1 from every class, or add the missing name in front; --boxes format if the names are right"
        builder.report("class-numbers", builder.split, "", message + "; ".join(examples[:3]), fix)
        return [[row for row in lines if row.label < count] for lines in rows]
    kept: Rows = []
    for lines, name in zip(rows, shown, strict=True):
        kept.append([row for row in lines if row.label not in strange])
        for row in lines:
            if row.label in strange:
                message = f"there is no class {row.label} among {count} (0 to {count - 1})"
                fix = "Correct the class, or add its name to data.yaml"
                builder.report("unknown-class", name, f"line {row.line}", message, fix)
    return kept


def understood(builder: Builder, rows: Rows, shown: Sequence[str], kpt_shape: Any) -> Rows:
    """The rows as boxes of 4 numbers and polygons; what is left out of them is reported once, broken rows each."""
    every = [row.values for lines in rows for row in lines]
    points = _points(kpt_shape)
    task = _task(every, points, kpt_shape)
    long = [values for values in every if len(values) > 4]
    if task is not None:
        count = sum(len(values) in task.counts for values in every)
        builder.report(task.code, builder.split, "", f"{count} of {len(every)} rows: {task.message}", "Nothing to do")
    elif len(long) >= _FEW and builder.options.boxes == "auto" and _most(_holds_points, long):
        message = f"{len(long)} of {len(every)} rows look like a box with keypoints; as polygons they have other boxes"
        fix = "Add `kpt_shape: [number, 2]` to data.yaml if so, use --boxes format if they are polygons"
        builder.report("keypoint-rows", builder.split, "", message, fix)
    kept: Rows = []
    for lines, name in zip(rows, shown, strict=True):
        kept.append([])
        for row in lines:
            count = len(row.values)
            if task is not None and count in task.counts:
                kept[-1].append(row._replace(values=task.box(row.values)))
            elif count == 4 or (count >= 6 and count % 2 == 0 and not points):
                kept[-1].append(row)
            else:
                message = f"{count + 1} numbers are neither a box nor a polygon"
                builder.report("broken-row", name, f"line {row.line}", message, _FIX)
    return kept


def _task(every: Sequence[list[float]], points: int, kpt_shape: Any) -> _Task | None:
    """What the rows are, if they are neither boxes nor polygons."""
    counts = set(map(len, every))
    if points and 4 + points in counts:
        return _Task("keypoints", {4 + points}, _first, f"the keypoints (kpt_shape {kpt_shape}) are left out")
    long = [values for values in every if len(values) > 4]
    counts = set(map(len, long))
    if not long:
        return None
    alone = len(long) == 1 < len(every)  # then it is a mistake
    if not alone and _most(_has_visibility, long):
        seen = {len(values) for values in long if _has_visibility(values)}
        return _Task("keypoints", seen, _first, "keypoints, each x, y and visibility, are left out")
    if counts == {5} and all(_is_whole(values[4]) for values in long):
        return _Task("confidence", counts, _first, "the last number is taken for that of a track, and left out")
    if counts == {5} and len(long) == len(every) and all(0 <= values[4] <= 1 for values in long):
        return _Task("confidence", counts, _first, "the last number is taken for a confidence, and left out")
    if counts == {6} and all(0 <= values[4] <= 1 and _is_whole(values[5]) and values[5] >= 1 for values in long):
        return _Task("confidence", counts, _first, "the last two numbers are taken for confidence and track, left out")
    if counts == {8} and all(map(_is_rectangle, long)):
        return _Task("rotated-boxes", counts, _upright, "a rotated box is read as the upright box around it")
    return None


def _most(form: Callable[[list[float]], bool], rows: Sequence[list[float]]) -> bool:
    return sum(map(form, rows)) >= _MOST * len(rows)


def _is_whole(value: float) -> bool:
    return value >= 0 and value == int(value)


def _points(kpt_shape: Any) -> int:
    """The numbers after the box of a row with keypoints; 0 for none."""
    if isinstance(kpt_shape, list) and len(kpt_shape) == 2 and all(type(v) is int and v > 0 for v in kpt_shape):
        return int(kpt_shape[0] * kpt_shape[1])
    return 0


def _first(values: list[float]) -> list[float]:
    return values[:4]


def _upright(values: list[float]) -> list[float]:
    x1, y1, x2, y2 = min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def _has_visibility(values: list[float]) -> bool:
    return len(values) >= 7 and len(values) % 3 == 1 and all(v in (0, 1, 2) for v in values[6::3])


def _is_rectangle(values: list[float]) -> bool:
    """Whether opposite sides of four corners are equal; right angles are not those of fractions."""
    a, b, c, d = np.asarray(values).reshape(4, 2)
    size = max(float(np.abs(a - c).max()), float(np.abs(b - d).max()), 1e-9)
    return bool(np.abs((a - b) - (d - c)).max() <= _SQUARE * size)


def _holds_points(values: list[float]) -> bool:
    """Whether the first four numbers are a box that the points after it lie in; a point at 0, 0 is not labelled."""
    if len(values) < 6 or len(values) % 2:
        return False
    cx, cy, w, h = values[:4]
    points = np.asarray(values[4:]).reshape(-1, 2)
    xs, ys = points[points.any(axis=1)].T
    if not len(xs):
        return False
    inside = (np.abs(xs - cx) <= w / 2 + _WITHIN).all() and (np.abs(ys - cy) <= h / 2 + _WITHIN).all()
    return bool(inside) and 0 < w <= 1 and 0 < h <= 1


def without_pixels(builder: Builder, rows: Rows, shown: Sequence[str], own: Sequence[bool]) -> Rows:
    """The rows without those in pixels, which are reported; numbers above 2 show them.

    Where most boxes have such numbers all stay: then they are in another unit together (`Builder.build`). Files that we
    wrote (`own`) stay: their boxes may be far outside.
    """

    def above(row: Row) -> bool:
        return max(map(abs, row.values)) > 2

    boxes = [above(row) for lines in rows for row in lines if len(row.values) == 4]
    together = 2 * sum(boxes) > len(boxes)
    kept: Rows = []
    for lines, name, ours in zip(rows, shown, own, strict=True):
        kept.append([])
        for row in lines:
            if ours or not above(row) or (together and len(row.values) == 4):
                kept[-1].append(row)
                continue
            message = f"{max(row.values, key=abs):g} is not a fraction of the image's size"
            fix = "Divide x and w by the width, y and h by the height"
            builder.report("not-normalised", name, f"line {row.line}", message, fix)
    return kept


def shape(values: Sequence[float], height: int, width: int) -> tuple[tuple[float, float, float, float], Mask]:
    """The box of a row as written, or the corners of a polygon on an image of this size, and its mask."""
    if len(values) == 4:
        return (values[0], values[1], values[2], values[3]), NO_MASK
    xs, ys = [x * width for x in values[0::2]], [y * height for y in values[1::2]]
    ring = [v for point in zip(xs, ys, strict=True) for v in point]
    return (min(xs), min(ys), max(xs), max(ys)), Mask(POLYGONS, pack_polygons([ring]))
