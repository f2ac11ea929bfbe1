"""Faults of data sets: one table of codes, and one line of text for each fault found.

An error stops training; a repair is made (the box dropped or clipped) and listed; a note informs.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from twostage.errors import DataError

Severity = Literal["error", "repair", "note"]
OnError = Literal["default", "fail", "skip"]

CODES: dict[str, tuple[Severity, str]] = {
    # the annotation files
    "missing-file": ("error", "a file or folder that the data set refers to does not exist"),
    "unreadable-file": ("error", "a file cannot be opened: permission, encoding, not a regular file"),
    "broken-json": ("error", "the JSON does not parse, or is not the annotation file of a data set"),
    "broken-xml": ("error", "the XML does not parse, declares a DTD or entities, or is not a VOC annotation"),
    "broken-yaml": ("error", "data.yaml or its like does not parse, or lacks a required key"),
    "broken-row": ("error", "a row of a YOLO label file is neither a box nor a polygon"),
    "broken-record": ("error", "an image, annotation or category lacks a field, or the field has the wrong type"),
    "not-normalised": ("error", "YOLO coordinates are pixels where fractions of the image are expected"),
    # identities
    "unknown-class": ("error", "an object's class is not among the data set's classes"),
    "unknown-image": ("error", "an annotation belongs to an image that the file does not list"),
    "duplicate-class": ("error", "two classes share a name or an id"),
    "duplicate-image-id": ("error", "two images share an id"),
    "duplicate-file": ("repair", "an image is listed twice; the objects of both entries are its own"),
    "merged-classes": ("repair", "two categories have the same name; their objects are of one class"),
    "left-over-labels": ("repair", "label files without an image; their objects are left out"),
    "duplicate-annotation-id": ("repair", "two annotations share an id; the later one gets a new id"),
    # images
    "missing-image": ("error", "the image does not exist"),
    "unreadable-image": ("error", "the image is empty, truncated, hostile, or not an image"),
    "missing-size": (
        "error",
        "the annotation does not state the size of the image, and there is no image file to read it from",
    ),
    "size-mismatch": ("repair", "the annotation states another size than the image has; the image's is used"),
    "resized-images": ("error", "images were resized after they were annotated; boxes are drawn on the stated sizes"),
    "rotated-annotation": (
        "note",
        "the annotation was made on the image before EXIF turned it; it is turned as well",
    ),
    # boxes and masks
    "box-not-numbers": ("error", "a box is missing, or is not four finite numbers"),
    "box-notation": ("error", "all boxes of a split seem to be written in another order or unit than the format's"),
    "class-numbers": ("error", "rows of YOLO files number the classes from 1"),
    "keypoint-rows": ("error", "rows of a YOLO file look like boxes with keypoints, and data.yaml has no kpt_shape"),
    "inverted-box": ("repair", "x2 < x1 or y2 < y1; dropped"),
    "zero-area-box": ("repair", "the box has no width or no height; dropped"),
    "box-outside": ("repair", "the box lies entirely outside the image; dropped"),
    "box-partly-outside": ("repair", "the box reaches over the border of the image; clipped"),
    "broken-mask": ("error", "a mask is not numbers, or its run lengths do not add up to the image"),
    "missing-mask": (
        "note",
        "some objects or images have no mask and others have; a model with masks needs --on-error skip",
    ),
    "stuff-map": ("note", "a stuff map is missing or does not fit its image; Hybrid Task Cascade trains on them"),
    "empty-mask": ("note", "a mask has no pixel in its image; a model with masks needs --on-error skip"),
    "short-polygon": ("repair", "a polygon of fewer than three points has no area; it is left out"),
    "mask-elsewhere": ("note", "a mask and its box hardly overlap"),
    # the data set as a whole
    "empty-split": ("error", "a split has no images, or the training split has no objects"),
    "classes-differ": ("error", "two splits do not have the same classes in the same order"),
    "duplicate-image": ("repair", "an image is in two splits that must not share images"),
    # notes on the data set
    "voc-offset": ("note", "which pixel VOC coordinates count from, and the evidence"),
    "keypoints": ("note", "keypoints are left out, only the boxes are read"),
    "rotated-boxes": ("note", "rotated boxes are read as the upright boxes around them"),
    "left-out-shapes": ("note", "points and lines, which are no objects, are left out"),
    "confidence": ("note", "label files are predictions, whose confidence is left out"),
    "unused-category": ("note", "a category without objects that has another's name, or is the root of all: left out"),
    "image-paths": ("note", "file names are paths of another machine; the images are found by the end of them"),
    "text-ids": ("note", "ids are text, and are numbered"),
    "unlisted-images": ("note", "images in the folders of the data set that are in none of its splits"),
    "unused-files": ("note", "files in the folders of the data set that are not read"),
    "left-over-images": ("note", "files in the folders of images that cannot be read as images, and are left out"),
    "filled-default": ("note", "optional fields that are missing and were filled with their default"),
    "background-images": ("note", "images without objects"),
    "repeated-image": ("note", "an image occurs twice in one split"),
    "wrong-extension": ("note", "the extension of an image is not that of its content"),
    "pixel-format": ("note", "images with CMYK, alpha or 16 bits are converted to 8-bit RGB"),
    "exif-turned": ("note", "images that their EXIF tag turns or mirrors"),
    "tiny-box": ("note", "the box is smaller than a pixel once the image is resized"),
    "whole-image-box": ("note", "the box is the whole image"),
    "duplicate-box": ("note", "two objects of one class have the same box"),
    "similar-class-names": ("note", "class names that differ in case or punctuation only"),
    "unused-class": ("note", "classes without objects"),
    "category-id-gaps": ("note", "category ids are not consecutive"),
    "class-imbalance": ("note", "a class is far rarer than another"),
    "crowd-objects": ("note", "objects marked iscrowd"),
    "difficult-objects": ("note", "objects marked difficult"),
    "stale-extras": ("note", "an annotation file was changed after twostage.json was written; its entry is ignored"),
    "unannotated-images": ("note", "images without an annotation file, taken as images without objects"),
}

# Faults of what can only be left out of a repaired copy, and those that leave open what boxes are.
REMOVED = frozenset(
    {
        *("broken-row", "broken-record", "broken-mask", "broken-xml", "unreadable-file", "not-normalised"),
        *("broken-json", "broken-yaml"),
        *("unknown-class", "unknown-image", "box-not-numbers", "inverted-box", "zero-area-box", "box-outside"),
        *("missing-image", "unreadable-image", "missing-size", "missing-file", "duplicate-image-id"),
        *("duplicate-image", "left-over-labels"),
    }
)
UNDECIDED = frozenset({"box-notation", "keypoint-rows", "resized-images", "class-numbers"})


class Fault(NamedTuple):
    """One fault: what (a code of `CODES`), where (file, and object in it or ""), the message, and how to fix it."""

    code: str
    severity: Severity
    file: str
    object: str
    message: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.object}" if self.object else self.file
        return f"{self.code} {self.severity} {place}: {self.message}. {self.fix}".replace("\n", "\\n")


def fault(code: str, file: object, where: str, message: str, fix: str) -> Fault:
    """A fault whose severity is that of its code."""
    return Fault(code, CODES[code][0], str(file), where, message, fix)


def format_faults(faults: Iterable[Fault], *, most: int = 50) -> str:
    """One line per fault, errors first; at most `most` lines with every code represented, the rest counted by code."""
    rank = {"error": 0, "repair": 1, "note": 2}
    ordered = sorted(faults, key=lambda f: rank[f.severity])
    seen: Counter[str] = Counter()
    turns = []  # the first of every code, then the second ...: a frequent fault must not hide the others
    for f in ordered:
        turns.append((rank[f.severity], seen[f.code]))
        seen[f.code] += 1
    listed = set(sorted(range(len(ordered)), key=turns.__getitem__)[:most])
    lines = [str(f) for i, f in enumerate(ordered) if i in listed]
    rest = Counter(f.code for i, f in enumerate(ordered) if i not in listed)
    if rest:
        lines.append(f"... and {rest.total()} more: " + ", ".join(f"{n} {code}" for code, n in rest.items()))
    return "\n".join(lines)


class FaultyDataError(DataError):
    """Data that cannot be used, with all its faults."""

    def __init__(self, heading: str, faults: Sequence[Fault]) -> None:
        super().__init__(f"{heading}\n{format_faults(faults)}" if faults else heading)
        self.faults = tuple(faults)


def unusable(path: object, code: str, message: str, fix: str, where: str = "") -> FaultyDataError:
    """The error for a file or folder that cannot be used at all."""
    return FaultyDataError(f"{path}: cannot be used.", [fault(code, path, where, message, fix)])
