"""How well anchors fit objects: the highest IoU of each object with any anchor (Faster R-CNN, section 3.1.2).

An image stands alone on its canvas, resized by the model's own rule. Letters: M images, B objects, L levels, K anchors
at one position of a level.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import nn

from twostage.data.dataset import Dataset
from twostage.data.resize import Resize
from twostage.data.stats import MEDIUM, SMALL
from twostage.models.backbones.backbone import Backbone
from twostage.models.build import anchors_of, backbone_of
from twostage.models.config import DetectorConfig, OneStageConfig, StagewiseConfig, TwoStageConfig
from twostage.models.proposals.anchors import cell_anchors
from twostage.models.zoo import ZOO

# From 0.5 an object counts as covered; from 0.7 an anchor is positive in any case (Faster R-CNN, section 3.1.2).
IOUS = (0.5, 0.7)
SIZES = ("small", "medium", "large")
UNDEFINED = -1.0  # the share of no objects, as in COCO's tools

AnchorModelConfig = TwoStageConfig | OneStageConfig


@dataclass(frozen=True)
class AnchorPositions:
    """The objects on their resized images, and where the anchors of each image stand.

    An axis is (height, width). `starts` and `ends` are an object's first and last coordinate on each, `extents` the
    sides of its image, `counts` the positions of each level's anchors that count, and `steps` the pixels between them.
    Without `cross_boundary` anchors that lie partly outside the image do not count.
    """

    strides: tuple[int, ...]
    starts: Float64[np.ndarray, "b 2"]
    ends: Float64[np.ndarray, "b 2"]
    extents: Float64[np.ndarray, "b 2"]
    counts: Int64[np.ndarray, "l b 2"]
    steps: Int64[np.ndarray, "l b 2"]
    cross_boundary: bool


def has_anchors(config: DetectorConfig) -> bool:
    """Whether a model has anchors; those that read proposals from elsewhere have none."""
    return not isinstance(config, StagewiseConfig) and config.anchors is not None


def used_objects(dataset: Dataset) -> Bool[np.ndarray, " b"]:
    """Which objects training and evaluation count: those that are neither crowd nor difficult."""
    return ~(dataset.crowd | dataset.difficult)


def resized_boxes(dataset: Dataset, resize: Resize) -> tuple[Float64[np.ndarray, "b 4"], Int64[np.ndarray, "m 2"]]:
    """The boxes of all objects on their resized images, and the height and width of these images."""
    sizes, which = np.unique(dataset.sizes, axis=0, return_inverse=True)
    each = np.array([resize.shape(int(h), int(w)) for h, w in sizes], dtype=np.int64).reshape(-1, 2)
    shapes = each[which.ravel()]
    factors = (shapes / dataset.sizes)[dataset.image_indices]
    return dataset.boxes * factors[:, [1, 0, 1, 0]], shapes


def canvas_shapes(shapes: Int64[np.ndarray, "m 2"], divisor: int) -> Int64[np.ndarray, "m 2"]:
    """Both sides of each image rounded up to a multiple of `divisor`, as `data.batch.canvas_shape`."""
    return np.asarray(-(-shapes // divisor) * divisor)


def anchor_positions(dataset: Dataset, config: AnchorModelConfig) -> AnchorPositions:
    """Where the anchors of a model with these components stand on the images of a data set.

    Raises UsageError as building the model does.
    """
    anchors = config.anchors
    assert anchors is not None
    network = backbone_of(config)
    strides = cast(Backbone, network).strides
    boxes, shapes = resized_boxes(dataset, config.image.resizing)
    canvases = canvas_shapes(shapes, config.image.divisor)
    maps = _map_shapes(network, canvases)
    stride = np.array(strides, dtype=np.int64)[:, None, None]
    counts = maps if anchors.in_padding else np.minimum(maps, -(-shapes // stride))
    steps = np.broadcast_to(stride, maps.shape) if anchors.stride == "fixed" else canvases // maps
    image = dataset.image_indices
    return AnchorPositions(
        strides=strides,
        starts=boxes[:, [1, 0]],
        ends=boxes[:, [3, 2]],
        extents=shapes[image].astype(np.float64),
        counts=counts[:, image],
        steps=steps[:, image],
        cross_boundary=not isinstance(config, TwoStageConfig) or config.rpn is None or config.rpn.cross_boundary,
    )


def best_iou(positions: AnchorPositions, config: AnchorModelConfig) -> Float64[np.ndarray, " b"]:
    """The highest IoU of each object with an anchor that counts; 0 where none touches it.

    The areas of an object and of an anchor shape are fixed, so IoU rises with the overlap along each axis, and that
    falls with the distance of the centres: on each axis the position nearest to the object is the best one. The result
    is that of comparing an object with all anchors of its image, up to rounding. Raises UsageError where the sizes are
    not of so many levels.
    """
    anchors = anchors_of(config, positions.strides)
    areas = (positions.ends - positions.starts).prod(axis=1)
    best = np.zeros(len(areas))
    for level in range(len(positions.strides)):
        for x1, y1, x2, y2 in anchors.get_buffer(f"cell{level}").double().tolist():
            overlap = _overlap(positions, level, np.array([y1, x1]), np.array([y2, x2])).prod(axis=1)
            iou = overlap / (areas + (x2 - x1) * (y2 - y1) - overlap)
            np.maximum(best, iou, out=best)
    return best


def _overlap(
    positions: AnchorPositions, level: int, start: Float64[np.ndarray, " 2"], end: Float64[np.ndarray, " 2"]
) -> Float64[np.ndarray, "b 2"]:
    """The largest overlap of each object with an anchor along each axis, which goes from `start` to `end` at 0."""
    step, lowest, highest = positions.steps[level], 0.0, positions.counts[level] - 1.0
    if not positions.cross_boundary:
        lowest = np.maximum(lowest, np.ceil(-start / step))
        highest = np.minimum(highest, np.floor((positions.extents - end) / step))
    nearest = np.rint((positions.starts + positions.ends - start - end) / 2 / step)
    shift = np.minimum(np.maximum(nearest, lowest), highest) * step
    overlap = np.minimum(positions.ends, shift + end) - np.maximum(positions.starts, shift + start)
    return np.where(lowest <= highest, overlap.clip(min=0), 0.0)


def _map_shapes(network: nn.Module, canvases: Int64[np.ndarray, "m 2"]) -> Int64[np.ndarray, "l m 2"]:
    """The shape of each level's map on canvases of these shapes, by the network.

    Rows depend on the height alone, and a canvas that is larger by the coarsest stride has maps that are larger by a
    constant: a few small square images give the shapes of all.
    """
    strides = np.array(cast(Backbone, network).strides, dtype=np.int64)
    period = int(strides.max())
    # From twice the period on: the smallest maps may have been clamped to one cell.
    small = np.where(canvases < 2 * period, canvases, 2 * period + canvases % period)
    sides, which = np.unique(small, return_inverse=True)
    network.eval()
    with torch.no_grad():
        maps = [[m.shape[2] for m in network(torch.zeros(1, 3, side, side))] for side in sides.tolist()]
    rows = np.array(maps, dtype=np.int64).reshape(-1, len(strides)).T[:, which.reshape(small.shape)]
    return np.asarray(rows + (canvases - small) // strides[:, None, None])


def anchor_sides(config: AnchorModelConfig) -> Float64[np.ndarray, "k 2"]:
    """Width and height of the anchors of all levels, before the model's own rounding."""
    anchors = config.anchors
    assert anchors is not None
    cells = cell_anchors([size for level in anchors.sizes for size in level], anchors.ratios).numpy()
    return np.asarray(cells[:, 2:] - cells[:, :2])


def shares(iou: Float64[np.ndarray, " b"]) -> dict[str, float]:
    """The number of these objects and the share of them that an anchor overlaps by 0.5 and by 0.7, -1 of none."""
    reached = [round(float((iou >= least).mean()), 4) if len(iou) else UNDEFINED for least in IOUS]
    return {"objects": len(iou), "iou50": reached[0], "iou70": reached[1]}


def shares_by_size(iou: Float64[np.ndarray, " b"], areas: Float64[np.ndarray, " b"]) -> dict[str, Any]:
    """`shares` of all objects and, as `small`, `medium` and `large`, of those of COCO's sizes by their own areas."""
    size = np.digitize(areas, (SMALL, MEDIUM))
    return {**shares(iou), **{name: shares(iou[size == place]) for place, name in enumerate(SIZES)}}


def shares_by_class(
    dataset: Dataset, iou: Float64[np.ndarray, " b"], used: Bool[np.ndarray, " b"]
) -> dict[str, dict[str, Any]]:
    """`shares_by_size` of every class."""
    rows = {}
    for label, name in enumerate(dataset.names):
        own = used & (dataset.labels == label)
        rows[name] = shares_by_size(iou[own], dataset.areas[own])
    return rows


def zoo_anchor_sets() -> list[tuple[AnchorModelConfig, list[str]]]:
    """The distinct anchor sets of the zoo, each with the models that have it; the first stands for all.

    Models of one set agree in their anchors, in the image size and the canvas, and in which anchors count.
    """
    found: dict[Any, tuple[AnchorModelConfig, list[str]]] = {}
    for name, config in ZOO.items():
        if isinstance(config, StagewiseConfig) or config.anchors is None:
            continue
        inside_only = isinstance(config, TwoStageConfig) and config.rpn is not None and not config.rpn.cross_boundary
        key = (config.anchors, config.image.resizing, config.image.divisor, inside_only)
        found.setdefault(key, (config, []))[1].append(name)
    return list(found.values())
