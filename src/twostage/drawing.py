"""Draw boxes, labels and masks on images, legible at any size.

Colours depend on the class id. The first seven are those of Okabe and Ito (2008), which people with any colour vision
can distinguish; more classes take the same hues darker, then lighter. Lines and fonts scale with the image.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from twostage import atomic, fonts
from twostage.errors import UsageError

Colour = tuple[int, int, int]

# Orange, sky blue, bluish green, yellow, vermilion, reddish purple, blue.
_HUES: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
# If labels cover more than this share of the image, a legend replaces them.
_CROWDED = 0.25
_LONGEST = 8192  # pixels, to which images are enlarged at most
_HELD = {"JPEG": 65500, "MPO": 65500, "WEBP": 16383}  # pixels of a side that a format can hold


class _Label(NamedTuple):
    """One label: its text, its place in the image (x1, y1, x2, y2), its colour."""

    text: str
    place: tuple[int, int, int, int]
    colour: Colour


def colour_of(class_id: int) -> Colour:
    """The colour (R, G, B; 0 to 255) of a class: the same in every image and plot."""
    hue = _HUES[class_id % len(_HUES)]
    turn = class_id // len(_HUES) % 3
    if turn == 0:
        return hue
    toward, weight = (0, 0.45) if turn == 1 else (255, 0.5)
    red, green, blue = (round(c + (toward - c) * weight) for c in hue)
    return red, green, blue


def draw_boxes(
    image: UInt8[np.ndarray, "h w 3"] | Image.Image,
    boxes: Float[np.ndarray, "n 4"],
    labels: Sequence[str],
    scores: Float[np.ndarray, " n"] | None = None,
    *,
    class_ids: Int[np.ndarray, " n"] | None = None,
    masks: Sequence[Mapping[str, Any]] | None = None,
    min_side: int = 0,
) -> Image.Image:
    """A copy of the image with one box and one label per object; `boxes` are xyxy pixels, `masks` COCO RLEs.

    `class_ids` determine the colours (by default each distinct label has its own). An image whose shortest side is
    below `min_side` is first enlarged by a whole factor, so that labels can be read, but to no more than 8192 pixels.
    Labels are placed inside the image and apart from each other if possible; if they would cover too much, a legend
    that counts the classes replaces them.
    """
    picture = image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(image)
    if class_ids is None:
        known = sorted(set(labels))
        class_ids = np.array([known.index(label) for label in labels], dtype=np.int64)
    factor = max(1, min(-(-min_side // max(1, min(picture.size))), _LONGEST // max(1, *picture.size)))
    # A copy where the factor is 1.
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    colours = [colour_of(int(c)) for c in class_ids]
    corners = np.round(np.nan_to_num(boxes) * factor).astype(int).tolist()
    # The best score is drawn last, on top; without scores the smallest box is.
    order = np.argsort(scores if scores is not None else -np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
    if masks is not None:
        picture = _blend_masks(picture, [masks[i] for i in order], [colours[i] for i in order])
    draw = ImageDraw.Draw(picture)
    width = line_width(picture.size)
    for i in order:
        _outline(draw, corners[i], colours[i], width)
    texts = [f"{label} {scores[i]:.2f}" if scores is not None else label for i, label in enumerate(labels)]
    font = font_for(picture.size, "".join(texts))
    placed = _place_labels(
        draw, [(texts[i], corners[i], colours[i]) for i in reversed(order.tolist())], font, picture.size
    )
    covered = sum((x2 - x1) * (y2 - y1) for _, (x1, y1, x2, y2), _ in placed)
    if covered > _CROWDED * picture.width * picture.height:
        placed = _legend(draw, labels, colours, font, picture.size)
    for label in reversed(placed):
        _write(draw, label, font)
    return picture


def draw_pair(
    image: UInt8[np.ndarray, "h w 3"] | Image.Image,
    truth: tuple[Float[np.ndarray, "g 4"], Int[np.ndarray, " g"]],
    detections: tuple[Float[np.ndarray, "n 4"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]],
    names: Sequence[str],
    *,
    masks: tuple[Sequence[Mapping[str, Any]] | None, Sequence[Mapping[str, Any]] | None] = (None, None),
    min_side: int = 384,
) -> Image.Image:
    """Ground truth (boxes, class ids) on the left, detections (boxes, class ids, scores) on the right, captioned."""
    pair = []
    for (boxes, class_ids, *scores), rles in zip((truth, detections), masks, strict=True):
        labels = [names[c] for c in class_ids]
        pair.append(draw_boxes(image, boxes, labels, *scores, class_ids=class_ids, masks=rles, min_side=min_side))
    return tile(pair, titles=["ground truth", "detections"], columns=2)


def tile(pictures: Sequence[Image.Image], *, titles: Sequence[str] | None = None, columns: int = 4) -> Image.Image:
    """Images in rows of `columns` on white, each cell as large as the largest image, titles above the images."""
    if not pictures:
        raise UsageError("No images to tile: give at least one.")
    gap = 8
    columns = min(columns, len(pictures))
    cell_w, cell_h = max(p.width for p in pictures), max(p.height for p in pictures)
    font = fonts.font(max(14, min(28, min(cell_w, cell_h) // 24)), "".join(titles or ()))
    head = int(font.size * 1.7) if titles is not None else 0
    rows = -(-len(pictures) // columns)
    size = (columns * (cell_w + gap) + gap, rows * (cell_h + head + gap) + gap)
    sheet = Image.new("RGB", size, _WHITE)
    draw = ImageDraw.Draw(sheet)
    for k, picture in enumerate(pictures):
        x, y = gap + k % columns * (cell_w + gap), gap + k // columns * (cell_h + head + gap)
        if titles is not None:
            draw.text((x, y + head // 2), titles[k], fill=(40, 40, 40), font=font, anchor="lm")
        sheet.paste(picture, (x, y + head))
    return sheet


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Save atomically in the format of the suffix; missing folders are made.

    A picture with a longer side than the format can hold (JPEG 65500 pixels, WebP 16383) is made smaller. Raises
    UsageError for a suffix of no image format.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise UsageError(
            f"{path}: cannot save an image as {path.suffix or 'a file without suffix'!r}; use .jpg, .png or .webp."
        )
    picture = picture.convert("RGB")
    most = _HELD.get(kind, max(picture.size))
    if max(picture.size) > most:
        picture.thumbnail((most, most))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind in ("JPEG", "WEBP") else {}))
    atomic.write_bytes(path, buffer.getvalue())


def line_width(size: tuple[int, int]) -> int:
    """Line width in pixels for an image of this (width, height): 2 up to 500 px, then proportional to the size."""
    return max(2, round(min(size) / 200))


def font_for(size: tuple[int, int], text: str = "") -> ImageFont.FreeTypeFont:
    """The font of labels with this text in an image of this (width, height)."""
    return fonts.font(max(11, min(64, round(min(size) / 34))), text)


def _outline(draw: ImageDraw.ImageDraw, box: list[int], colour: Colour, width: int) -> None:
    """The box in its colour with a thin dark line outside, so that it is visible on any background."""
    x1, y1, x2, y2 = box
    x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_BLACK)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=width)


def _write(draw: ImageDraw.ImageDraw, label: _Label, font: ImageFont.FreeTypeFont) -> None:
    x1, y1, x2, y2 = label.place
    red, green, blue = label.colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 130
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=label.colour)
    draw.text(((x1 + x2) / 2, (y1 + y2) / 2), label.text, fill=_BLACK if bright else _WHITE, font=font, anchor="mm")


def _label_size(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    pad = max(2, round(font.size / 4))
    return round(draw.textlength(text, font=font)) + 2 * pad, round(font.size * 1.25) + pad


def _place_labels(
    draw: ImageDraw.ImageDraw,
    wanted: list[tuple[str, list[int], Colour]],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> list[_Label]:
    """Put each label at the best of six places around its box, in the order of `wanted`.

    The cost of a place is the area that it covers of earlier labels and of boxes; a box smaller than the label counts
    in full, a larger one in proportion. A label without a place that is three quarters free of other labels is omitted.
    """
    boxes = np.array([box for _, box, _ in wanted], dtype=float).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=1).prod(axis=1)
    placed: list[_Label] = []
    for text, (x1, y1, x2, y2), colour in wanted:
        w, h = _label_size(draw, text, font)
        corners = [(x1, y1 - h), (x1, y2), (x2 - w, y1 - h), (x2 - w, y2), (x1, y1), (x1, y2 - h)]
        # Above the box only if there is room: moved down by the border it would cover the box's upper edge.
        corners = [(x, y) for x, y in corners if y >= 0 and y + h <= size[1]] or [(x1, y1)]
        inside = [(min(max(0, x), max(0, size[0] - w)), min(max(0, y), max(0, size[1] - h))) for x, y in corners]
        places = np.array([(x, y, x + w, y + h) for x, y in inside])
        hidden = _overlaps(places, np.array([label.place for label in placed]).reshape(-1, 4)).sum(axis=1)
        covered = (_overlaps(places, boxes) * np.minimum(1, w * h / areas)).sum(axis=1)
        best = int((4 * hidden + covered).argmin())
        if hidden[best] <= w * h / 4:
            placed.append(_Label(text, tuple(places[best].tolist()), colour))
    return placed


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Common area in pixels of each of `a` with each of `b`."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return sides.clip(min=0).prod(axis=2)


def _legend(
    draw: ImageDraw.ImageDraw,
    labels: Sequence[str],
    colours: Sequence[Colour],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> list[_Label]:
    """One line per class with its count, the most frequent first, from the top left corner down."""
    colour = dict(zip(labels, colours, strict=True))
    counts = sorted(((-labels.count(name), name) for name in colour), key=lambda pair: pair[0])
    placed, y = [], 0
    for count, name in counts:
        text = f"{name} × {-count}"
        w, h = _label_size(draw, text, font)
        if y + h > size[1]:
            break
        placed.append(_Label(text, (0, y, w, y + h), colour[name]))
        y += h
    return placed


def _blend_masks(picture: Image.Image, masks: Sequence[Mapping[str, Any]], colours: Sequence[Colour]) -> Image.Image:
    """The masks as 35 % of their colour over the image."""
    for rle, colour in zip(masks, colours, strict=True):
        stencil = Image.fromarray(coco_mask.decode(rle) * np.uint8(90)).resize(picture.size, Image.Resampling.NEAREST)
        picture.paste(colour, (0, 0), stencil)
    return picture
