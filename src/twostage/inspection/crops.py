"""Pictures of suggestions: the part of the image around a box, with the label and the suggestion in different lines."""

import io
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from twostage.data.dataset import Dataset
from twostage.inspection.suggestion import Kind, Suggestion

LABEL, SUGGESTED, OTHER = (230, 159, 0), (86, 180, 233), (255, 255, 255)  # orange, sky blue (Okabe and Ito 2008), white
CONTEXT = 0.8  # of the box's longer side, on each side of it
LEAST = 24  # pixels of context
SIDE = 384  # pixels of the picture's longer side
_LARGEST = 8  # factor by which a crop is enlarged
_DARK = (0, 0, 0)


def crop(dataset: Dataset, suggestion: Suggestion, image: UInt8[np.ndarray, "h w 3"] | None = None) -> Image.Image:
    """The surroundings of a suggestion: the label in doubt in a solid orange line, the suggested box in a dashed blue
    one, other labels in thin white dots. `image` is the image of the suggestion, where it is open already."""
    pixels = dataset.image(suggestion.image) if image is None else image
    boxes = [dataset.boxes[row].tolist() for row in (suggestion.row, suggestion.other) if row is not None]
    boxes += [] if suggestion.box is None else [list(suggestion.box)]
    part, factor, origin = _enlarged(pixels, np.array(boxes))
    draw = ImageDraw.Draw(part)
    rows = range(*dataset.offsets[suggestion.image : suggestion.image + 2].tolist())
    for row in rows:
        if row != suggestion.row:
            dashed(draw, (dataset.boxes[row] - origin) * factor, OTHER, dash=(3, 3), width=1)
    if suggestion.row is not None:
        solid(draw, (dataset.boxes[suggestion.row] - origin) * factor, LABEL)
    if suggestion.box is not None and suggestion.kind != Kind.WRONG_CLASS:  # whose box is the label's
        dashed(draw, (np.array(suggestion.box) - origin) * factor, SUGGESTED)
    return part


def jpeg(picture: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return content.getvalue()


def thumbnail(image: UInt8[np.ndarray, "h w 3"], boxes: Iterable[Float[np.ndarray, " 4"]]) -> Image.Image:
    """A whole image with suggested boxes."""
    picture = Image.fromarray(image)
    factor = SIDE / max(1, *picture.size)
    small = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
    draw = ImageDraw.Draw(small)
    for box in boxes:
        dashed(draw, np.asarray(box) * factor, SUGGESTED)
    return small


def solid(draw: ImageDraw.ImageDraw, box: Float[np.ndarray, " 4"], colour: tuple[int, int, int]) -> None:
    """A box in a solid line with a dark edge, so that it shows on any ground."""
    x1, y1, x2, y2 = np.round(box).tolist()
    x2, y2 = max(x1 + 1, x2 - 1), max(y1 + 1, y2 - 1)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_DARK)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=2)


def dashed(
    draw: ImageDraw.ImageDraw,
    box: Float[np.ndarray, " 4"],
    colour: tuple[int, int, int],
    dash: tuple[int, int] = (12, 5),
    width: int = 4,
) -> None:
    """A box in a dashed line on a dark one; `dash` are the pixels of a dash and of a gap."""
    x1, y1, x2, y2 = np.round(box).tolist()
    x2, y2 = max(x1 + 1, x2 - 1), max(y1 + 1, y2 - 1)
    on, off = dash
    for (ax, ay), (bx, by) in (
        ((x1, y1), (x2, y1)),
        ((x2, y1), (x2, y2)),
        ((x1, y2), (x2, y2)),
        ((x1, y1), (x1, y2)),
    ):
        if width > 1:
            draw.line((ax, ay, bx, by), fill=_DARK, width=width)
        length = max(abs(bx - ax), abs(by - ay))
        for start in np.arange(0, length, on + off).tolist():
            ends = [min(start, length) / length, min(start + on, length) / length]
            (px, py), (qx, qy) = ((ax + (bx - ax) * share, ay + (by - ay) * share) for share in ends)
            draw.line((px, py, qx, qy), fill=colour, width=width if width == 1 else width - 1)


def _enlarged(
    image: UInt8[np.ndarray, "h w 3"], boxes: Float[np.ndarray, "n 4"]
) -> tuple[Image.Image, float, Float[np.ndarray, " 4"]]:
    """The part of the image around the boxes; the factor and the corner (twice) that bring boxes to its pixels."""
    height, width = image.shape[:2]
    x1, y1 = boxes[:, :2].min(axis=0)
    x2, y2 = boxes[:, 2:].max(axis=0)
    margin = max(LEAST, CONTEXT * max(x2 - x1, y2 - y1))
    left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
    right, bottom = min(width, int(np.ceil(x2 + margin))), min(height, int(np.ceil(y2 + margin)))
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    part = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
    factor = min(_LARGEST, SIDE / max(part.size))
    size = max(1, round(part.width * factor)), max(1, round(part.height * factor))
    return part.resize(size, Image.Resampling.BICUBIC), factor, np.array([left, top, left, top], dtype=np.float64)
