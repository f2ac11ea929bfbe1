"""Generated scenes: shapes on a noisy background, with boxes and masks, written as a COCO folder.

A scene is a function of (seed, split, index). Objects are drawn from large to small, so that small ones are never
hidden; boxes and masks are those of the visible pixels.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from twostage.data.randomness import generator
from twostage.errors import TwostageError, UsageError
from twostage.ops.masks import encode

NAMES = ("circle", "square", "triangle", "star", "cross")
SPLITS = ("train", "val")
OVERSAMPLE = 4  # sub-pixels per side, for smooth edges


@dataclass(frozen=True)
class SceneStyle:
    """The size of a scene, and the number and size of its objects; sides and outline in pixels."""

    size: int = 192
    least: int = 1
    most: int = 6
    small: float = 19.0
    large: float = 69.0
    log_uniform: bool = False
    overlap: float = 0.1
    aspect: tuple[float, float] = (0.7, 1.4)
    outline: tuple[float, float] = (1.0, 2.5)
    noise: tuple[float, float] = (4.0, 16.0)


EASY = SceneStyle()
HARD = SceneStyle(size=256, least=3, most=10, small=10.0, large=110.0, log_uniform=True, overlap=0.4)


class Scene(NamedTuple):
    """An image, and the class, the box xyxy (whole pixels, half-open) and the mask of each object."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: list[int]
    boxes: list[tuple[int, int, int, int]]
    masks: Bool[np.ndarray, "g h w"]


def write_scenes(folder: str | Path, *, train: int = 600, val: int = 100, seed: int = 0, hard: bool = False) -> Path:
    """Writes annotations/instances_{train,val}.json with the images in train/ and val/; returns the folder.

    Masks are in the JSON, the class of every pixel in stuff/{train,val}/ (`data.stuff`).
    The folder appears when it is complete. Raises UsageError if `folder` exists, TwostageError if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise UsageError(f"{folder}: exists already. Name a new folder.")
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        (part / "annotations").mkdir(parents=True)
        style = HARD if hard else EASY
        for number, (split, count) in enumerate(zip(SPLITS, (train, val), strict=True)):
            (part / split).mkdir()
            (part / "stuff" / split).mkdir(parents=True)
            document = _write_split(part / split, part / "stuff" / split, count, (seed, number), style)
            (part / "annotations" / f"instances_{split}.json").write_text(json.dumps(document), encoding="utf-8")
        (part / "stuff" / "names.txt").write_text("\n".join([*NAMES, "ground"]) + "\n", encoding="utf-8")
        part.rename(folder)
    except OSError as error:
        raise TwostageError(f"{folder}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)  # Ctrl-C passes here too
    return folder


def make_scene(*numbers: int, style: SceneStyle = EASY) -> Scene:
    """The scene of these numbers (seed, split, index)."""
    rng = generator(*numbers)
    canvas = _ground(rng, style)
    places = _places(rng, style)
    owner = np.full((style.size, style.size), -1, dtype=np.int16)
    labels = [int(rng.integers(len(NAMES))) for _ in places]
    for index, (label, place) in enumerate(zip(labels, places, strict=True)):
        _draw(rng, canvas, owner, index, label, place, style)
    masks = owner[None] == np.arange(len(places), dtype=np.int16)[:, None, None]
    seen = [i for i in range(len(places)) if masks[i].any()]
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, [labels[i] for i in seen], [_bounds(masks[i]) for i in seen], masks[seen])


def _write_split(
    folder: Path, stuff: Path, count: int, numbers: tuple[int, int], style: SceneStyle
) -> dict[str, object]:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(count):
        scene = make_scene(*numbers, index, style=style)
        name = f"{index:06d}.jpg"
        Image.fromarray(scene.image).save(folder / name, quality=95, subsampling=0)
        images.append({"id": index + 1, "file_name": name, "height": style.size, "width": style.size})
        Image.fromarray(_stuff(scene)).save(stuff / f"{index:06d}.png")
        rles = encode(scene.masks)
        for label, (x1, y1, x2, y2), mask, rle in zip(scene.labels, scene.boxes, scene.masks, rles, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _stuff(scene: Scene) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel; the background has the last one."""
    stuff = np.full(scene.image.shape[:2], len(NAMES), dtype=np.uint8)
    for label, mask in zip(scene.labels, scene.masks, strict=True):
        stuff[mask] = label
    return stuff


def _ground(rng: np.random.Generator, style: SceneStyle) -> Float[np.ndarray, "h w 3"]:
    """A smooth colour gradient with noise."""
    side = int(rng.integers(2, 5))
    coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((style.size, style.size), Image.Resampling.BICUBIC), dtype=np.float32)
    noise = rng.standard_normal(smooth.shape, dtype=np.float32)
    return smooth + noise * np.float32(rng.uniform(*style.noise))


def _places(rng: np.random.Generator, style: SceneStyle) -> list[tuple[float, float, float, float]]:
    """Boxes x, y, w, h of the objects from large to small; a box that overlaps too much is drawn again."""
    places: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.integers(style.least, style.most + 1))):
        for _ in range(50):
            place = _place(rng, style)
            if all(_iou(place, other) <= style.overlap for other in places):
                places.append(place)
                break
    return sorted(places, key=lambda p: p[2] * p[3], reverse=True)


def _place(rng: np.random.Generator, style: SceneStyle) -> tuple[float, float, float, float]:
    """A random box inside the scene; its aspect (width / height) is as often above 1 as below."""
    if style.log_uniform:
        side = math.exp(rng.uniform(math.log(style.small), math.log(style.large)))
    else:
        side = rng.uniform(style.small, style.large)
    aspect = math.exp(rng.uniform(math.log(style.aspect[0]), math.log(style.aspect[1])))
    width, height = (min(max(side * f, style.small), style.large) for f in (math.sqrt(aspect), 1 / math.sqrt(aspect)))
    return rng.uniform(0, style.size - width), rng.uniform(0, style.size - height), width, height


def _iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(across, 0.0) * max(down, 0.0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def _draw(
    rng: np.random.Generator,
    canvas: Float[np.ndarray, "h w 3"],
    owner: np.ndarray,
    index: int,
    label: int,
    place: tuple[float, float, float, float],
    style: SceneStyle,
) -> None:
    """Draws one object onto the canvas, and its index onto the pixels that it covers at least half."""
    x, y, width, height = place
    left, top = math.floor(x), math.floor(y)
    right, bottom = min(math.ceil(x + width), style.size), min(math.ceil(y + height), style.size)
    outline = np.array([x - left, y - top]) + _shape(label) * (width, height)
    points = [(float(px), float(py)) for px, py in outline * OVERSAMPLE - 0.5]
    fill, line = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    thick = max(1, round(rng.uniform(*style.outline) * OVERSAMPLE))
    body, edge = (Image.new("L", ((right - left) * OVERSAMPLE, (bottom - top) * OVERSAMPLE)) for _ in range(2))
    ImageDraw.Draw(body).polygon(points, fill=255)
    ImageDraw.Draw(edge).polygon(points, fill=0, outline=255, width=thick)
    cover, rim = (np.asarray(part.reduce(OVERSAMPLE), np.float32)[..., None] / 255 for part in (body, edge))
    patch = canvas[top:bottom, left:right]
    patch += (fill - patch) * cover
    patch += (line - patch) * np.minimum(rim, cover)
    owner[top:bottom, left:right][cover[..., 0] >= 0.5] = index


def _shape(label: int) -> Float[np.ndarray, "n 2"]:
    """The corners of the shape of a class, scaled to the unit square."""
    if NAMES[label] == "circle":
        turn = np.arange(48) * (2 * math.pi / 48)
        return np.stack([np.cos(turn), np.sin(turn)], axis=1) / 2 + 0.5
    if NAMES[label] == "square":
        return np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    if NAMES[label] == "triangle":
        return np.array([[0.5, 0], [1, 1], [0, 1]])
    if NAMES[label] == "star":
        turn = np.arange(10) * (2 * math.pi / 10)
        radius = np.where(np.arange(10) % 2, 0.45, 1.0)
        points = np.stack([np.sin(turn), -np.cos(turn)], axis=1) * radius[:, None]
        return np.asarray((points - points.min(axis=0)) / np.ptp(points, axis=0))
    a, b = 1 / 3, 2 / 3
    return np.array([[a, 0], [b, 0], [b, a], [1, a], [1, b], [b, b], [b, 1], [a, 1], [a, b], [0, b], [0, a], [a, a]])


def _bounds(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    across, down = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1
