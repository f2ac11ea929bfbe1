"""Detect objects in images with an exported detector, without torch and without twostage.

    python predict.py photo.jpg more/*.jpg --conf 0.5 --save found

    from predict import Predictor
    predictor = Predictor("model.onnx")
    found = predictor.predict("photo.jpg")
    found["boxes"], found["scores"], found["labels"]

It needs numpy, Pillow, and onnxruntime for a .onnx file or openvino for a .xml file. Boxes are x1, y1, x2, y2 in pixels
of the image, turned upright by its EXIF tag.
"""

import argparse
import io
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from twostage.data.interpolation import antialiased, bilinear
from twostage.data.resize_geometry import interpolation_steps, resize_factors, resized_extent, resized_shape
from twostage.data.uint8_resize import by_opencv, by_pillow
from twostage.inference.free_names import free_name
from twostage.inference.runtimes import FileError, PackageError, cores, open_session
from twostage.ops.paste import paste

_AT_ONCE = 4  # images at most: each has feature maps of its own


class Predictor:
    """An exported detector: images in, detections on their own pixels out. Several threads may call `predict`: with
    `at_once` of them more images are done in a second, and each takes longer."""

    def __init__(
        self, path: str | Path, *, threads: int | None = None, precision: str = "fp32", at_once: int = 1
    ) -> None:
        """Raises FileError for a file that is no export, PackageError where its runtime is not installed."""
        self.session = open_session(Path(path), threads, precision, at_once)
        self.about = self.session.metadata
        self.names: list[str] = self.about["names"]
        if "proposals" in self.about["inputs"]:
            raise FileError(f"{path}: a Fast R-CNN takes proposals from elsewhere: predict with twostage itself.")

    def predict(self, image: Any, conf: float | None = None) -> dict[str, Any]:
        """The detections of an image: a path, a PIL image, or an array [h, w, 3] of uint8 in RGB.

        Arrays boxes [n, 4], scores [n] and class_ids [n], best first, and the list labels; masks is a list of COCO's
        RLEs, or None. `conf` is the lowest score: by default 0.5, or the file's threshold where that is higher. Raises
        FileError where the image cannot be read or `conf` is below that threshold.
        """
        pixels = image if isinstance(image, np.ndarray) else read(image)
        floor = self.about["thresholds"]["score"]
        conf = max(0.5, floor) if conf is None else conf
        if not floor <= conf <= 1:
            raise FileError(f"conf {conf} is not from {floor}, the threshold that the file was exported with, to 1.")
        out = self.session.run(inputs_of(pixels, self.about))
        return detections_of(out, pixels.shape[:2], self.about, conf)


def inputs_of(pixels: NDArray[np.uint8], about: Mapping[str, Any]) -> dict[str, NDArray]:
    """What the model takes for an image: see `inputs` of the metadata."""
    if about["pixels"]:
        return {"pixels": pixels[None]}
    rule = SimpleNamespace(**about["resize"])
    small = resized(pixels, rule)
    (height, width), divisor = small.shape[:2], about["divisor"]
    canvas = np.zeros((1, 3, -(-height // divisor) * divisor, -(-width // divisor) * divisor), dtype=np.float32)
    canvas[0, :, :height, :width] = small.transpose(2, 0, 1)
    every = {
        "images": canvas,
        "sizes": np.array([[height, width]], dtype=np.int64),
        "original_sizes": np.array([pixels.shape[:2]], dtype=np.int64),
        "factors": np.array([resize_factors(rule, *pixels.shape[:2])], dtype=np.float32),
        "extents": np.array([resized_extent(rule, *pixels.shape[:2])], dtype=np.float32),
    }
    return {name: every[name] for name in about["inputs"]}


def resized(pixels: NDArray[np.uint8], rule: Any) -> NDArray:
    """An image resized by the detector's rule, from 0 to 1."""
    height, width = pixels.shape[:2]
    new = resized_shape(rule, height, width)
    if new == (height, width):
        return pixels.astype(np.float32) / 255
    if rule.by in ("pillow", "opencv"):
        return (by_pillow if rule.by == "pillow" else by_opencv)(pixels, *new).astype(np.float32) / 255
    if rule.by in ("caffe", "skimage"):
        steps = interpolation_steps(rule, height, width)
        return bilinear(pixels, *new, steps, mirrored=rule.by == "skimage") / 255
    if rule.antialias:
        return antialiased(pixels, *new) / 255
    return bilinear(pixels, *new, (height / new[0], width / new[1]), places=np.float32) / 255


def detections_of(
    out: Mapping[str, NDArray], size: Sequence[int], about: Mapping[str, Any], conf: float
) -> dict[str, Any]:
    """The detections of the first image from `conf` on, on the pixels of an image of this height and width."""
    height, width = size
    keep = np.arange(out["scores"].shape[1]) < out["count"][0]
    keep &= out["scores"][0] > conf
    boxes, class_ids = out["boxes"][0][keep].astype(np.float32), out["labels"][0][keep]
    if not about["pixels"]:
        down, across = resize_factors(SimpleNamespace(**about["resize"]), height, width)
        factors, sides = ([x, y] * 2 for x, y in ((across, down), (width, height)))
        boxes = np.minimum(boxes * np.array(factors, dtype=np.float32), np.array(sides, dtype=np.float32))
    masks = None
    if about["mask"] is not None:
        grids, rule = out["masks"][0][keep].astype(np.float32), about["mask"]
        masks = paste(grids, boxes, height, width, threshold=rule["threshold"], way=rule["paste"])
    return {
        "boxes": boxes,
        "scores": out["scores"][0][keep].astype(np.float32),
        "class_ids": class_ids,
        "labels": [about["names"][k] for k in class_ids],
        "masks": masks,
    }


def read(source: Any) -> NDArray[np.uint8]:
    """An image as upright RGB. Raises FileError where it cannot be read."""
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits: the high byte
            samples = np.asarray(image)
            if samples.min(initial=0) < 0 or samples.max(initial=0) > 0xFFFF:
                raise ValueError("its samples need more than 16 bits")
            image = Image.fromarray((samples >> 8).astype(np.uint8))
        if image.mode in ("F", "LAB"):
            raise ValueError(f"pixels of mode {image.mode} have no agreed range; 8 or 16 bits have")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(f"{source}: cannot be read as an image ({_first_line(error)}).") from None


def draw(pixels: NDArray[np.uint8], found: Mapping[str, Any]) -> Image.Image:
    """The image with its detections."""
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    width = max(1, round(min(image.size) / 250))
    for box, score, label, class_id in zip(
        found["boxes"], found["scores"], found["labels"], found["class_ids"], strict=True
    ):
        colour = _COLOURS[int(class_id) % len(_COLOURS)]
        pen.rectangle([float(x) for x in box], outline=colour, width=width)
        text = f"{label} {score:.2f}"
        place = min(float(box[0]), image.width - pen.textlength(text)), max(0.0, float(box[1]) - _LINE)
        pen.rectangle(pen.textbbox(place, text), fill=colour)
        pen.text(place, text, fill="black")
    return image


_LINE = 12  # pixels of a line of text
# Colours that people with any kind of colour vision tell apart (Okabe and Ito 2008).
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def to_dict(path: str, pixels: NDArray[np.uint8], found: Mapping[str, Any]) -> dict[str, Any]:
    """As `twostage predict --json` writes an image."""
    masks = found["masks"] or [None] * len(found["labels"])
    rows = zip(found["labels"], found["class_ids"], found["scores"], found["boxes"], masks, strict=True)
    detections = []
    for label, class_id, score, box, mask in rows:
        row = {"label": label, "class_id": int(class_id), "score": float(score), "box": [float(x) for x in box]}
        if mask is not None:
            row["mask"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        detections.append(row)
    return {"path": path, "width": pixels.shape[1], "height": pixels.shape[0], "detections": detections}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description="Detect objects in images with an exported detector."
    )
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--model", type=Path, help="exported model (default: model.onnx or model.xml beside this file)")
    parser.add_argument("--conf", type=float, help="lowest score of a detection (default: 0.5)")
    parser.add_argument("--save", type=Path, help="folder for the images with their detections drawn")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--threads", type=int, help="threads of the runtime (default: its own choice)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="bf16: OpenVINO only")
    given = parser.parse_args(arguments)
    if given.threads is not None and given.threads < 1:
        parser.error(f"argument --threads: {given.threads} is below 1")
    if given.conf is not None and not 0 <= given.conf <= 1:
        parser.error(f"argument --conf: {given.conf:g} is not from 0 to 1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names need not be text, or in the code page of a console
        sys.stdout.reconfigure(errors="backslashreplace")
    at_once = min(_AT_ONCE, given.threads or cores(), len(given.images))
    try:
        predictor = Predictor(
            given.model or _beside(), threads=given.threads, precision=given.precision, at_once=at_once
        )
    except (FileError, PackageError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if given.save:
        try:
            given.save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"--save {given.save}: cannot be made ({error.strerror})", file=sys.stderr)
            return 2

    def predicted(path: str) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        pixels = read(path)
        return pixels, predictor.predict(pixels, given.conf)

    results, code = [], 0
    taken: dict[str, int] = {}
    for path, done in zip(given.images, side_by_side(predicted, given.images, at_once), strict=True):
        try:
            pixels, found = done.result()
        except FileError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
            continue
        results.append(to_dict(path, pixels, found))
        if not given.json:
            print(_line(results[-1]))
        if given.save:
            drawn = given.save / f"{free_name(Path(path).stem, taken)}.png"
            try:
                draw(pixels, found).save(drawn)
            except OSError as error:
                print(f"{drawn}: cannot be written ({error.strerror or error})", file=sys.stderr)
                return 1
    if given.json:
        print(json.dumps({"images": results}))
    return code


def side_by_side(function: Callable[[Any], Any], items: Sequence[Any], at_once: int) -> Iterator[Future[Any]]:
    """The calls of a function in order, several of them at once and none far ahead: images are large."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > at_once:
                yield waiting.popleft()
        yield from waiting


def _line(result: Mapping[str, Any]) -> str:
    """`photo.jpg  640 x 480: cat 0.98 [12, 30, 200, 310], dog 0.75 [...]`."""
    rows = (f"{d['label']} {d['score']:.2f} [{', '.join(f'{x:.0f}' for x in d['box'])}]" for d in result["detections"])
    return f"{result['path']}  {result['width']} x {result['height']}: {', '.join(rows) or 'no detections'}"


def _beside() -> Path:
    folder = Path(__file__).parent
    found = [folder / name for name in ("model.onnx", "model.xml") if (folder / name).exists()]
    if not found:
        raise FileError(f"{folder}: no model.onnx or model.xml here. Give one with --model.")
    return found[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    sys.exit(main())
