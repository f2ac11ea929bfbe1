"""One prediction: images in, boxes on their own pixels out."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from twostage.data.batch import Batch, Originals, canvas_shape, stack_images
from twostage.detections import Detections
from twostage.errors import DataError
from twostage.inference.runner import Runner
from twostage.models.config import DetectorConfig, OneStageConfig, TwoStageConfig
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.image import AnyImageConfig
from twostage.models.proposals.provided import of_images
from twostage.ops.paste import paste
from twostage.ops.run_lengths import RLE

log = logging.getLogger("twostage.inference")


def make_batch(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], config: DetectorConfig, image: AnyImageConfig | None = None
) -> Batch:
    """Images (RGB) as the model takes them: resized, on one canvas, with proposals where it has no RPN.

    `image` replaces the configuration's own rule of resizing.
    """
    return with_proposals(resized(images, image or config.image), images, config)


def resized(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], config: AnyImageConfig) -> Batch:
    """Images (RGB) resized by the model's rule, on one canvas."""
    resize = config.resizing
    tensors = [resize(torch.tensor(image).permute(2, 0, 1)) for image in images]
    originals = Originals.of([(pixels.shape[0], pixels.shape[1]) for pixels in images], resize)
    return stack_images(tensors, divisor=config.divisor, originals=originals)


def with_proposals(batch: Batch, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], config: DetectorConfig) -> Batch:
    """The batch of these images with proposals, for a model without an RPN."""
    if isinstance(config, OneStageConfig):
        return batch
    shapes = [(int(h), int(w)) for h, w in batch.sizes]
    return replace(batch, proposals=of_images(images, shapes, config.proposals))


def on_originals(boxes: Float[Tensor, "n d 4"], batch: Batch) -> Float[Tensor, "n d 4"]:
    """Boxes in a batch on the pixels of its images before they were resized."""
    sizes, factors, _ = (values.cpu().float().flip(1).repeat(1, 2)[:, None] for values in batch.before)
    return (boxes.float() * factors).minimum(sizes)  # the factor is rounded, and so may be a border


def to_arrays(detections: BatchDetections, batch: Batch, config: DetectorConfig) -> list[dict[str, Any]]:
    """Detections of each image on its own pixels: boxes, scores, class_ids and proposals, and masks (RLEs) or None.

    See `on_originals`.
    """
    detections = detections.each(Tensor.cpu)
    boxes, scores, labels, proposals, valid, overflow, masks = detections
    if overflow.any():
        log.warning(
            "%d of %d images: more boxes above the threshold than `candidates` allows, and the result may lack some. "
            "Raise the field `candidates`, or `score_threshold`.",
            *(int(overflow.sum()), len(overflow)),
        )
    boxes = on_originals(boxes, batch)
    columns = {"boxes": boxes, "scores": scores, "class_ids": labels, "proposals": proposals}
    mask = config.mask if isinstance(config, TwoStageConfig) else None
    out: list[dict[str, Any]] = []
    for i, (height, width) in enumerate(batch.before.sizes.tolist()):
        one = {name: column[i][valid[i]].numpy() for name, column in columns.items()}
        rles: list[RLE] | None = None
        if masks is not None and mask is not None:
            grids = masks[i][valid[i]].float().numpy()
            rles = paste(grids, one["boxes"], height, width, threshold=mask.threshold, way=mask.paste)
        out.append({**one, "masks": rles})
    return out


def predict_arrays(
    model: Runner,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    postprocess: PostprocessConfig | None = None,
    image: AnyImageConfig | None = None,
) -> list[dict[str, Any]]:
    """`to_arrays` of images on one canvas; the rules of post-processing and resizing are by default the model's."""
    batch = make_batch(images, model.config, image)
    detections = model.detect(batch, postprocess or model.config.postprocess)
    return to_arrays(detections, batch, model.config)


def detect_images(
    model: Runner,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    names: tuple[str, ...],
    *,
    postprocess: PostprocessConfig,
    image: AnyImageConfig | None = None,
    paths: Sequence[str | None] | None = None,
) -> list[Detections]:
    """Detections in several images; those that have one canvas go through the model together.

    `image` replaces the model's own rule of resizing. Features near the border of an image depend on the padding beside
    it: with canvases of their own no image changes another. Raises DataError for an image that the model cannot take.
    """
    rule = image or model.config.image
    originals = [(pixels.shape[0], pixels.shape[1]) for pixels in images]
    by_canvas: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(originals):
        by_canvas.setdefault(canvas_shape(*rule.resizing.shape(*shape), rule.divisor), []).append(i)
    arrays: dict[int, dict[str, Any]] = {}
    paths = paths or [None] * len(images)
    for some in by_canvas.values():
        with naming(paths[some[0]], originals[some[0]]):
            arrays |= zip(some, predict_arrays(model, [images[i] for i in some], postprocess, rule), strict=True)
    return [
        Detections(names=names, size=size, image=pixels, path=path, **arrays[i])
        for i, (pixels, size, path) in enumerate(zip(images, originals, paths, strict=True))
    ]


@contextmanager
def naming(path: str | None, size: tuple[int, int]) -> Iterator[None]:
    """Within it a DataError of the model names the image: its path, and its height and width."""
    try:
        yield
    except DataError as error:
        height, width = size
        raise DataError(f"{path or 'image'} ({width} x {height} pixels): {error}") from None
