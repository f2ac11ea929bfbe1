"""One prediction: pictures in, boxes on their own pixels out."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from twostage.data.batch import Batch, canvas_shape, stack_images
from twostage.detections import Detections
from twostage.models.fields import Fields
from twostage.models.heads.box import Look
from twostage.models.heads.detect import Found
from twostage.models.proposals.given import of_pictures
from twostage.models.proposals.rpn import Dense, Proposals
from twostage.models.two_stage import Stages, TwoStage
from twostage.ops.masks import RLE
from twostage.ops.paste import paste

log = logging.getLogger("twostage.inference")

_PIXELS = 1_500_000  # together in one pass on a processor


def make_batch(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], fields: Fields) -> Batch:
    """Pictures (RGB) as the model takes them: resized by its rule, on one canvas, with proposals where it has none."""
    return proposed(resized(images, fields), images, fields)


def resized(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], fields: Fields) -> Batch:
    """Pictures (RGB) resized by the model's rule, on one canvas."""
    resize = fields.resizing
    tensors = [resize(torch.tensor(image).permute(2, 0, 1)) for image in images]
    return stack_images(tensors, divisor=fields.divisor)


def proposed(batch: Batch, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], fields: Fields) -> Batch:
    """The batch of these pictures with proposals, for a model that does not propose by itself."""
    return replace(batch, proposals=of_pictures(images, [(int(h), int(w)) for h, w in batch.sizes], fields))


@torch.inference_mode()
def run(model: TwoStage, batch: Batch, *, output: Fields) -> Stages:
    """Every stage of the forward pass on the model's device."""
    return model.stages(batch.to(model.mean.device), output)


@torch.inference_mode()
def find(model: TwoStage, batch: Batch, *, output: Fields) -> Found:
    """Detections of a batch, on the processor."""
    found = []
    for part in parts(model, batch):
        there, read = part.to(model.mean.device), partial(finished, model, sizes=part.sizes, output=output)
        recorded = model.recorded
        found.append(read(model.stages(there, output)) if recorded is None else recorded(model, there, output, read))
    return joined(found)


def joined(parts: Sequence[Found]) -> Found:
    """The detections of all images of several passes."""
    if len(parts) == 1:
        return parts[0]
    columns: list[Any] = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    return Found(*columns)


def parts(model: TwoStage, batch: Batch) -> list[Batch]:
    """The images that go through the model together: on a processor no more than keep it busy.

    There a larger batch gains nothing, and its maps leave the cache and take the more memory.
    """
    if model.mean.device.type != "cpu":
        return [batch]
    height, width = batch.images.shape[2:]
    return batch.split(max(1, _PIXELS // (height * width)))


@torch.inference_mode()
def finished(model: TwoStage, stages: Stages, sizes: Int[Tensor, "n 2"], output: Fields) -> Found:
    """The detections of a forward pass, on the processor.

    A device suppresses in a constant number of sweeps; the rare batch that needs more (`Found.overflow`) is finished by
    the processor, which knows no such limit.
    """
    found = stages.found.each(Tensor.cpu)
    if model.mean.device.type == "cpu" or not found.overflow.any():
        return found
    return suppressed_again(model, stages, sizes, output)


@torch.inference_mode()
def suppressed_again(model: TwoStage, stages: Stages, sizes: Int[Tensor, "n 2"], output: Fields) -> Found:
    """The detections of a forward pass with both suppressions repeated by the processor."""
    sizes = sizes.cpu()
    proposals = Proposals(*(value.cpu() for value in stages.proposals))
    if model.rpn is not None and stages.dense is not None:
        proposals = model.rpn.propose(Dense(*([level.cpu() for level in part] for part in stages.dense)), sizes)
    device = model.mean.device
    there = Proposals(*(value.to(device) for value in proposals))
    read = model.second.reads(stages.maps)
    looks = model.second.looks(read, there, sizes.to(device))
    looks = tuple(Look(*(value.cpu() for value in look)) for look in looks)
    found = model.second.detect(looks, proposals, sizes, output).each(lambda value: value.to(device))
    return model.second.masks(read, found).each(Tensor.cpu)


def to_arrays(
    found: Found, sizes: Tensor, originals: Sequence[tuple[int, int]], fields: Fields
) -> list[dict[str, Any]]:
    """Detections of each image on its own pixels: boxes, scores, class_ids and proposals, and masks (RLEs) or None.

    `sizes` are the heights and widths the images had in the batch, `originals` their own. Each axis is scaled by its
    own factor, since rounding to whole pixels changes the two differently.
    """
    found = found.each(Tensor.cpu)
    boxes, scores, labels, proposals, valid, overflow, masks = found
    if overflow.any():
        log.warning(
            "%d of %d images: more boxes above the threshold than `candidates` allows, and the result may lack some. "
            "Raise the field `candidates`, or `score_threshold`.",
            *(int(overflow.sum()), len(overflow)),
        )
    scale = torch.tensor(originals, dtype=torch.float32) / sizes.cpu().float()
    boxes = boxes.float() * scale.flip(1).repeat(1, 2)[:, None]
    # The factor is rounded, and so may be a border.
    limits = torch.tensor(originals, dtype=torch.float32).flip(1).repeat(1, 2)[:, None]
    boxes = boxes.minimum(limits)
    return [
        {
            "boxes": boxes[i][valid[i]].numpy(),
            "scores": scores[i][valid[i]].numpy(),
            "class_ids": labels[i][valid[i]].numpy(),
            "proposals": proposals[i][valid[i]].numpy(),
            "masks": None if masks is None else _pasted(masks[i][valid[i]], boxes[i][valid[i]], originals[i], fields),
        }
        for i in range(len(originals))
    ]


def _pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int], fields: Fields) -> list[RLE]:
    return paste(masks.float().numpy(), boxes.numpy(), *size, threshold=fields.mask_threshold, way=fields.mask_paste)


def detect_images(
    model: TwoStage,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    names: tuple[str, ...],
    *,
    output: Fields,
    paths: Sequence[str | None] | None = None,
) -> list[Detections]:
    """Detections in several pictures; those that have one canvas go through the model together.

    `output` says how they are resized, too. What lies beside a picture on a larger canvas changes features near its
    border: here no picture meets another.
    """
    originals = [(image.shape[0], image.shape[1]) for image in images]
    alike: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(originals):
        canvas = canvas_shape(*output.resizing.shape(*shape), output.divisor)
        alike.setdefault(canvas, []).append(i)
    arrays: dict[int, dict[str, Any]] = {}
    for some in alike.values():
        batch = make_batch([images[i] for i in some], output)
        found = find(model, batch, output=output)
        arrays.update(zip(some, to_arrays(found, batch.sizes, [originals[i] for i in some], output), strict=True))
    return [
        Detections(names=names, size=size, image=image, path=path, **arrays[i])
        for i, (image, size, path) in enumerate(zip(images, originals, paths or [None] * len(images), strict=True))
    ]
