"""Test-time augmentation: an image mirrored, at other sizes and in tiles, and the detections of all views fused.

Letters: n detections.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice, product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from twostage.detections import Detections
from twostage.errors import UsageError
from twostage.inference.predictor import detect_images
from twostage.inference.runner import Runner
from twostage.kinds import coerce, describe, matches
from twostage.models.heads.postprocess import AboveThreshold, PostprocessConfig, suppress
from twostage.models.image import AnyImageConfig, OwnSizeConfig
from twostage.ops.boxes import iou
from twostage.ops.masks import decode
from twostage.ops.paste import Patch, encoded

SAME = 0.55  # IoU from which on boxes are one object's (Solovyev et al. 2021, section 3)
LOW = 0.05  # of a score, from which on boxes are fused
COPIES = 0.7  # IoU above which a view drops a box, where soft-NMS is left for all views together
COVERED = 0.7  # of a cut box within a whole one: then it is a part of that,
SURE = 0.5  # where the whole one has so much of its score

Fuse = Literal["nms", "wbf"]


@dataclass(frozen=True)
class TestTimeAugmentation:
    """The views of an image; the default is the image as it is.

    `flip`: also mirrored. `scales`: at these factors of the model's size. `tile`: also in square windows of so many
    pixels, which share `overlap` of their side with the next one. `fuse`: "nms" keeps the best of overlapping boxes,
    "wbf" takes their mean, weighed by their scores (weighted boxes fusion, Solovyev et al. 2021). Raises UsageError for
    values out of range.
    """

    __test__ = False  # pytest takes a class whose name begins so for tests

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    tile: int | None = None
    overlap: float = 0.25
    fuse: Fuse = "nms"

    def __post_init__(self) -> None:
        for each in fields(self):
            value = coerce(getattr(self, each.name), each.type)
            if not matches(value, each.type):
                raise UsageError(f"{each.name} cannot be {value!r}: it takes {describe(each.type)}.")
            object.__setattr__(self, each.name, value)
        if not all(0.1 <= scale <= 10 for scale in self.scales):
            raise UsageError(f"scales is {self.scales}, and must be factors from 0.1 to 10, as 0.75 1 1.25.")
        if self.tile is not None and self.tile < 32:
            raise UsageError(f"tile is {self.tile}, and must be 32 pixels or more.")
        if not 0 <= self.overlap < 0.9:
            raise UsageError(f"overlap is {self.overlap}, and must be from 0 to below 0.9.")
        if self.tile is None and self.overlap != TestTimeAugmentation.overlap:
            raise UsageError(
                f"overlap is {self.overlap}, and there are no tiles that could: give tile, or leave it out."
            )
        if self.fuse != "nms" and self.plain:
            raise UsageError(f"fuse is {self.fuse!r}, and there is one view alone: give flip, scales or tile.")

    @property
    def plain(self) -> bool:
        """Whether the image itself is the only view."""
        return not self.flip and self.scales == (1.0,) and self.tile is None


class Window(NamedTuple):
    """A part of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


class ViewDetections(NamedTuple):
    """The detections of one view, boxes on the pixels of the whole image, masks on those of the window.

    `cut` marks boxes that end at a tile's inner border.
    """

    window: Window
    flip: bool
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    class_ids: Int[np.ndarray, " n"]
    masks: list[dict] | None
    cut: Bool[np.ndarray, " n"]


def detect_augmented(
    model: Runner,
    image: UInt8[np.ndarray, "h w 3"],
    names: tuple[str, ...],
    *,
    postprocess: PostprocessConfig,
    views: TestTimeAugmentation,
    batch: int = 1,
    path: str | None = None,
) -> Detections:
    """Detections of an image from all views together; without `proposals`, which are of several passes.

    At most `batch` views of one size go through the model together. There are at most `max_det` detections a tile.
    Raises DataError for an image of which the model cannot take a view.
    """
    height, width = image.shape[:2]
    # The mean is over the best box of each view; weak detections count too, as evidence of how many views have one.
    config = postprocess
    if views.fuse == "wbf":
        config = replace(postprocess, soft_nms="off", score_threshold=min(postprocess.score_threshold, LOW))
    elif postprocess.soft_nms != "off":  # applied once: a neighbour whose score falls twice is lost
        config = replace(postprocess, soft_nms="off", nms=max(postprocess.nms, COPIES))
    most = postprocess.max_det * max(1, len(list(windows(height, width, views))) - 1)
    by_view = list(_detect_views(model, image, names, config, views, batch, path))
    boxes, scores, class_ids = (
        np.concatenate([getattr(one, name) for one in by_view]) for name in ("boxes", "scores", "class_ids")
    )
    masks = None if by_view[0].masks is None else [(one, rle) for one in by_view for rle in one.masks or []]
    whole = ~_parts_of_others(boxes, scores, class_ids, np.concatenate([one.cut for one in by_view]))
    kept = np.flatnonzero(whole)
    boxes, scores, class_ids = boxes[kept], scores[kept], class_ids[kept]
    if views.fuse == "nms":
        best, best_scores = _suppressed(boxes, scores, class_ids, replace(postprocess, max_det=most))
        fused = boxes[best], best_scores
    else:
        # As many as look at one window: a tile and the whole image take each other's place.
        per_place = len(views.scales) * (2 if views.flip else 1)
        groups = np.zeros_like(class_ids) if postprocess.nms_across_classes else class_ids
        fused_boxes, fused_scores, best = fuse(boxes, scores, groups, per_place)
        enough = np.flatnonzero(fused_scores > postprocess.score_threshold)[:most]
        fused, best = (fused_boxes[enough], fused_scores[enough]), best[enough]
    return Detections(
        boxes=fused[0].astype(np.float32),
        scores=fused[1].astype(np.float32),
        class_ids=class_ids[best],
        masks=None if masks is None else [_placed(masks[kept[i]], (height, width)) for i in best],
        names=names,
        size=(height, width),
        image=image,
        path=path,
    )


def windows(height: int, width: int, views: TestTimeAugmentation) -> Iterator[Window]:
    """The whole image, and the tiles where there are some and it is larger than one."""
    yield Window(0, 0, height, width)
    tile = views.tile
    if tile is None or (height <= tile and width <= tile):
        return
    rows, columns = (_starts(side, tile, views.overlap) for side in (height, width))
    for top, left in product(rows, columns):
        yield Window(top, left, min(tile, height), min(tile, width))


def fuse(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    class_ids: Int[np.ndarray, " n"],
    views: int,
) -> tuple[Float[np.ndarray, "c 4"], Float[np.ndarray, " c"], Int[np.ndarray, " c"]]:
    """Weighted boxes fusion: boxes, scores and the best member of each cluster, best first.

    `views` is the number of views of one place: what few of them saw counts less (Solovyev et al. 2021, section 3).
    """
    clusters: list[list[int]] = []
    middles = [np.zeros((0, 4))]
    descending = np.argsort(-scores, kind="stable")
    for label in np.unique(class_ids):
        own: list[list[int]] = []
        middle = np.empty((np.count_nonzero(class_ids == label), 4))  # of each cluster so far
        for i in descending[class_ids[descending] == label].tolist():
            overlap = iou(torch.from_numpy(boxes[i : i + 1]).double(), torch.from_numpy(middle[: len(own)]))[0].numpy()
            if len(own) and overlap.max() > SAME:
                place = int(overlap.argmax())
                own[place].append(i)
                middle[place] = np.average(boxes[own[place]], axis=0, weights=scores[own[place]])
            else:
                middle[len(own)] = boxes[i]
                own.append([i])
        clusters += own
        middles.append(middle[: len(own)])
    together = np.array([scores[m].mean() * min(1.0, len(m) / views) for m in clusters], dtype=np.float64)
    order = np.argsort(-together, kind="stable")
    best = np.array([members[0] for members in clusters], dtype=np.int64)
    return np.concatenate(middles)[order], together[order], best[order]


def _detect_views(
    model: Runner,
    image: np.ndarray,
    names: tuple[str, ...],
    postprocess: PostprocessConfig,
    views: TestTimeAugmentation,
    batch: int,
    path: str | None,
) -> Iterator[ViewDetections]:
    height, width = image.shape[:2]
    for scale in views.scales:
        image_config = _scaled(model.config.image, scale)
        pairs = product(windows(height, width, views), (False, True) if views.flip else (False,))
        while some := list(islice(pairs, batch)):
            parts = [_part(image, window, flip) for window, flip in some]
            paths = [path] * len(parts)
            detections = detect_images(model, parts, names, postprocess=postprocess, image=image_config, paths=paths)
            for (window, flip), one in zip(some, detections, strict=True):
                yield _on_image(one, window, flip, (height, width))


def _scaled(config: AnyImageConfig, factor: float) -> AnyImageConfig:
    if isinstance(config, OwnSizeConfig):
        if factor != 1:
            raise UsageError(f"scales has {factor:g}: this detector takes images at their own size. Leave scales out.")
        return config
    size, max_size = (max(1, round(side * factor)) for side in (config.size, config.max_size))
    return replace(config, size=size, max_size=max_size)


def _part(image: np.ndarray, window: Window, flip: bool) -> UInt8[np.ndarray, "h w 3"]:
    top, left, height, width = window
    part = image[top : top + height, left : left + width]
    # A copy also of a single pixel, whose reversed view counts as contiguous and has a negative stride.
    return (part[:, ::-1] if flip else part).copy()


def _on_image(detections: Detections, window: Window, flip: bool, size: tuple[int, int]) -> ViewDetections:
    top, left, height, width = window
    boxes = detections.boxes.astype(np.float64)
    if flip:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    inner = np.array([left > 0, top > 0, left + width < size[1], top + height < size[0]])
    near = np.abs(boxes - np.array([0, 0, width, height])) < 1.0
    return ViewDetections(
        window,
        flip,
        boxes + np.array([left, top, left, top]),
        detections.scores.astype(np.float64),
        detections.class_ids,
        detections.masks,
        (near & inner).any(axis=1),
    )


def _placed(mask: tuple[ViewDetections, Any], size: tuple[int, int]) -> dict:
    """A view's mask on the whole image."""
    seen, rle = mask
    window = seen.window
    if not seen.flip and (window.height, window.width) == tuple(size):
        return dict(rle)
    (inside,) = decode([rle])
    part = np.ascontiguousarray(inside[:, ::-1] if seen.flip else inside)
    return dict(encoded(Patch(window.top, window.left, part), *size))


def _parts_of_others(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    class_ids: Int[np.ndarray, " n"],
    cut: Bool[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
    """Which boxes a tile's border has cut, and a whole one of their class holds most of and is about as sure."""
    parts = np.zeros(len(boxes), dtype=bool)
    others, other_scores, other_ids = boxes[~cut], scores[~cut], class_ids[~cut]
    for i in np.flatnonzero(cut):  # one by one: a large image has thousands of both, too many for a table
        low, high = np.maximum(boxes[i, :2], others[:, :2]), np.minimum(boxes[i, 2:], others[:, 2:])
        shared = (high - low).clip(min=0).prod(axis=1)
        own = max((boxes[i, 2:] - boxes[i, :2]).prod(), 1e-9)
        sure = (other_ids == class_ids[i]) & (other_scores >= SURE * scores[i])
        parts[i] = ((shared / own > COVERED) & sure).any()
    return parts


def _suppressed(
    boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, postprocess: PostprocessConfig
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The model's own last step, once more for all views together: which boxes stay, best first, and their scores."""
    order = np.argsort(-scores, kind="stable")
    if not len(order):
        return order, scores
    every = AboveThreshold(
        torch.from_numpy(boxes[order]).float()[None],
        torch.from_numpy(scores[order]).float()[None],
        torch.from_numpy(class_ids[order])[None],
        torch.from_numpy(order)[None],
        torch.ones(1, len(boxes), dtype=torch.bool),
        torch.zeros(1, dtype=torch.bool),
    )
    kept_boxes = suppress(every, postprocess)
    kept = kept_boxes.valid[0]
    return kept_boxes.proposals[0][kept].numpy(), kept_boxes.scores[0][kept].numpy()


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: the first at its beginning, the last at its end, evenly between."""
    if side <= tile:
        return [0]
    count = int(np.ceil((side - tile) / (tile * (1 - overlap)))) + 1
    return np.linspace(0, side - tile, count).round().astype(int).tolist()
