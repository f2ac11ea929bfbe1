"""Anchor sizes and ratios from the objects of a data set, by k-means with 1 - IoU as the distance.

Redmon and Farhadi 2017 ("YOLO9000", the paper of YOLOv2), section 2, dimension clusters: boxes on one centre, so that a
large box does not count for more than a small one. There the clusters are the anchors; here sizes and ratios are two
fields, so that each has clusters of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64

from twostage.inspection.anchor_reach import AnchorModelConfig, AnchorPositions, best_iou, shares
from twostage.shell import command

GAIN = 0.01  # a share has to grow by so much, and none may fall by more
OBJECTS_PER_CLUSTER = 10
STRIDES_PER_SIZE = 2  # sides of an anchor in strides of its level, at least: objects between smaller ones are missed
_RESTARTS = 8
_ITERATIONS = 100
_SAMPLE = 20_000  # objects at most, drawn at random: bounds the time


@dataclass(frozen=True)
class AnchorProposal:
    """Anchors that reach more objects than the present ones: None is a field that stays. `iou` is of every object."""

    sizes: tuple[tuple[float, ...], ...] | None
    ratios: tuple[float, ...] | None
    iou: Float64[np.ndarray, " b"]

    def fields(self) -> dict[str, object]:
        """The fields of the model that change, by their short names."""
        given = {"anchor_sizes": self.sizes, "anchor_ratios": self.ratios}
        return {name: value for name, value in given.items() if value is not None}

    def flags(self) -> str:
        """The same as options of `twostage train`."""
        values = (f"model.{name}={_text(value)}" for name, value in self.fields().items())
        return command(*(word for value in values for word in ("--set", value)))


def objects_needed(config: AnchorModelConfig) -> int:
    """The least number of objects that clusters are computed from."""
    assert config.anchors is not None
    return OBJECTS_PER_CLUSTER * max(sum(map(len, config.anchors.sizes)), len(config.anchors.ratios))


def propose_anchors(
    positions: AnchorPositions,
    config: AnchorModelConfig,
    used: Bool[np.ndarray, " b"],
    present: Float64[np.ndarray, " b"],
) -> AnchorProposal | None:
    """As many sizes and ratios as the model has now, if they reach more of the objects `used`; else None.

    Of new sizes, new ratios and both, that with the highest sum of the shares at IoU 0.5 and 0.7 on the real grid.
    `present` is `best_iou` of the present anchors. None too where there are fewer objects than `objects_needed`.
    """
    if used.sum() < objects_needed(config):
        return None
    now = _reached(present[used])
    best, best_sum = None, now.sum()
    for candidate in _candidates(positions, config, used):
        reached = _reached(candidate.iou[used])
        if (reached - now).max() >= GAIN and (reached - now).min() >= -GAIN and reached.sum() > best_sum:
            best, best_sum = candidate, reached.sum()
    return best


def _candidates(
    positions: AnchorPositions, config: AnchorModelConfig, used: Bool[np.ndarray, " b"]
) -> Iterator[AnchorProposal]:
    anchors = config.anchors
    assert anchors is not None
    height, width = (positions.ends - positions.starts)[used].T
    sizes = cluster_sizes(np.sqrt(height * width), positions.strides, [len(level) for level in anchors.sizes])
    ratios = cluster_ratios(height / width, len(anchors.ratios))
    new_sizes = sizes if all(len(set(level)) == len(level) for level in sizes) else None
    for some, others in ((None, ratios), (new_sizes, None), (new_sizes, ratios)):
        if some is None and others is None:
            continue
        changed = replace(anchors, sizes=some or anchors.sizes, ratios=others or anchors.ratios)
        yield AnchorProposal(some, others, best_iou(positions, replace(config, anchors=changed)))


def cluster_sizes(
    sides: Float64[np.ndarray, " b"], strides: tuple[int, ...], counts: list[int]
) -> tuple[tuple[float, ...], ...]:
    """So many sizes of each level, in whole pixels, from the square roots of the objects' areas; ascending over levels.

    Squares on one centre are compared. No size is below `STRIDES_PER_SIZE` strides of its level. A model whose sizes
    are all on one map may list them as several levels.
    """
    of_level = strides if len(strides) == len(counts) else strides[:1] * len(counts)
    least = np.repeat(STRIDES_PER_SIZE * np.array(of_level, dtype=np.float64), counts)
    found = kmeans_iou(np.stack([sides, sides], axis=1), sum(counts), least=np.stack([least, least], axis=1))
    rounded = [float(max(1, round(side))) for side in found[:, 0].tolist()]
    ends = np.cumsum(counts).tolist()
    return tuple(tuple(rounded[end - count : end]) for end, count in zip(ends, counts, strict=True))


def cluster_ratios(ratios: Float64[np.ndarray, " b"], count: int) -> tuple[float, ...]:
    """So many ratios of height and width, or fewer where some are equal. Boxes of area 1 on one centre are compared."""
    root = np.sqrt(ratios)
    found = kmeans_iou(np.stack([1 / root, root], axis=1), count)
    return tuple(sorted({max(0.01, round(float(height / width), 2)) for width, height in found}))


def kmeans_iou(
    sides: Float64[np.ndarray, "b 2"], count: int, *, least: Float64[np.ndarray, "k 2"] | None = None, seed: int = 0
) -> Float64[np.ndarray, "k 2"]:
    """Widths and heights of `count` clusters by k-means with the distance 1 - IoU of boxes on one centre, by height.

    The best of several starts by k-means++ (Arthur and Vassilvitskii 2007); the same seed gives the same clusters. With
    `least`, the k-th cluster of the ascending ones is at least so large.
    """
    rng = np.random.default_rng(seed)
    if len(sides) > _SAMPLE:
        sides = sides[rng.choice(len(sides), _SAMPLE, replace=False)]
    runs = (_lloyd(sides, _plus_plus(sides, count, rng), least) for _ in range(_RESTARTS))
    return min(runs, key=lambda centroids: float(_distances(sides, centroids).min(axis=1).mean()))


def _plus_plus(sides: Float64[np.ndarray, "b 2"], count: int, rng: np.random.Generator) -> Float64[np.ndarray, "k 2"]:
    """Objects far from one another: each drawn in proportion to the squared distance from those before."""
    chosen = [sides[rng.integers(len(sides))]]
    while len(chosen) < count:
        weight = _distances(sides, np.array(chosen)).min(axis=1).clip(min=0) ** 2
        total = weight.sum()
        chosen.append(sides[rng.choice(len(sides), p=weight / total if total > 0 else None)])
    return np.array(chosen)


def _lloyd(
    sides: Float64[np.ndarray, "b 2"], centroids: Float64[np.ndarray, "k 2"], least: Float64[np.ndarray, "k 2"] | None
) -> Float64[np.ndarray, "k 2"]:
    """Assign each box to the nearest centroid and take the mean of each cluster, until nothing changes."""
    centroids = _ascending(centroids, least)
    before = np.full(len(sides), -1)
    for _ in range(_ITERATIONS):
        nearest = _distances(sides, centroids).argmin(axis=1)
        if (nearest == before).all():
            break
        before = nearest
        members = np.bincount(nearest, minlength=len(centroids))[:, None]
        sums = np.stack([np.bincount(nearest, axis, minlength=len(centroids)) for axis in sides.T], axis=1)
        centroids = _ascending(np.where(members > 0, sums / np.maximum(members, 1), centroids), least)
    return centroids


def _ascending(
    centroids: Float64[np.ndarray, "k 2"], least: Float64[np.ndarray, "k 2"] | None
) -> Float64[np.ndarray, "k 2"]:
    ordered = centroids[np.argsort(centroids[:, 1], kind="stable")]
    return ordered if least is None else np.maximum(ordered, least)


def _distances(sides: Float64[np.ndarray, "b 2"], centroids: Float64[np.ndarray, "k 2"]) -> Float64[np.ndarray, "b k"]:
    """1 - IoU of boxes with these widths and heights on one centre."""
    shared = np.minimum(sides[:, None], centroids).prod(axis=2)
    return np.asarray(1 - shared / (sides.prod(axis=1)[:, None] + centroids.prod(axis=1) - shared))


def _reached(iou: Float64[np.ndarray, " b"]) -> Float64[np.ndarray, " 2"]:
    found = shares(iou)
    return np.array([found["iou50"], found["iou70"]])


def _text(value: object) -> str:
    """Numbers in nested lists, without needless digits."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}"
