"""The conventions by which detectors of different projects differ, each as a change to a detector.

A port that has one of them wrong computes what our detector computes with this change. Values of the configuration are
tried in every other way that is in use; orders of rows and channels are changed in the tensors.
(The projects' sources; Wu et al., detectron2, docs/notes/compatibility.md.)
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args, get_origin

from torch import Tensor

from twostage.models.component import Leaf, leaves, with_value
from twostage.models.config import DetectorConfig, OneStageConfig, StagewiseConfig
from twostage.parity.variants import Variant


class Convention(NamedTuple):
    """A convention that the other side may have in place of ours: its name, what it changes, and the change.

    `in_features`: whether the feature maps change, or only what is computed from them.
    """

    name: str
    says: str
    change: Callable[[Variant], Variant]
    in_features: bool = False


# Every other choice of these is tried, and of those with values the values.
_CHOICES: Mapping[str, tuple[Any, ...] | None] = {
    "image.resize_by": None,
    "image.antialias": None,
    "image.rounding": None,
    "image.divisor": (1, 32),
    "backbone.stride_in_1x1": None,
    "backbone.norm.eps": (0.0, 1e-5, 1e-3),
    "box_head.body.stride_in_1x1": None,  # of C4, with the backbone's
    "box_head.body.norm.eps": (0.0, 1e-5, 1e-3),
    "neck.extra": None,
    "anchors.offset": (0.0, 0.5, 7.5, 8.0, "half_stride"),
    "anchors.rounding": None,
    "anchors.stride": None,
    "anchors.in_padding": None,
    "rpn.delta_weights": ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)),
    "rpn.delta_clamp_two_sided": None,
    "rpn.top_test": (1000, 2000, 6000, 12000),
    "rpn.nms": (0.5, 0.7),
    "rpn.min_size": (1e-7, 1e-3, 16.0),
    "rpn.min_size_of": None,
    "rpn.min_size_first": None,
    "rpn.edges": None,
    "rpn.clip_multiple": (1, 32),
    "roi.edges": None,
    "box_head.edges": None,
    "backbone.pooling": None,
    "proposals.keep_test": (300, 1000, 2000),
    "roi.aligned": None,
    "roi.sampling_ratio": (0, 1, 2),
    "roi.max_samples": (None, 8),
    "roi.level_eps": (0.0, 1e-6),
    "roi.canonical_size": (112.0, 224.0),
    "stage.delta_weights": ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)),
    "cascade.scores": None,
    "box_head.delta_clamp_two_sided": None,
    "retinanet.delta_clamp_two_sided": None,
    "retinanet.delta_weights": ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)),
    "cascade.delta_weights": (((10.0, 10.0, 5.0, 5.0),) * 3,),
    "retinanet.clip_before_nms": None,
    "retinanet.top": (100, 1000),
    "mask.tower.roi.aligned": None,
    "mask.tower.roi.sampling_ratio": (0, 1, 2),
    "mask.paste": None,
    "mask.threshold": (0.4, 0.5),
    "semantic.maps": None,
    "semantic.averaged": None,
    "postprocess.nms": (0.3, 0.5, 0.7),
    "postprocess.nms_across_classes": None,
    "postprocess.soft_nms": None,
    "postprocess.score_threshold": (1e-3, 0.05),
    "postprocess.max_det": (100, 300),
    "postprocess.min_box_size": (0.0, 1e-2),
}
_SHARED = ("edges", "aligned", "sampling_ratio", "delta_clamp_two_sided", "stride_in_1x1", "eps")
_FEATURES = ("image.", "backbone.", "neck.")
DELTAS = r"(rpn|head)\b.*deltas\.(weight|bias)"


def conventions(variant: Variant) -> list[Convention]:
    """Every convention that a detector could have otherwise."""
    config = variant.config
    found = [*_of_pixels(config), *_of_fields(config)]
    if not isinstance(config, StagewiseConfig):
        found += [*_of_anchors(config), *_of_boxes(config), *_of_classes(config)]
    return found


def _of_fields(config: DetectorConfig) -> Iterator[Convention]:
    """The fields in every other way. Those that components share, as all RoIAligns `aligned`, first together."""
    listed = {leaf.path: leaf for leaf in leaves(config) if leaf.path in _CHOICES}
    together: dict[str, list[Leaf]] = {}
    for leaf in listed.values():
        together.setdefault(leaf.path.rpartition(".")[2], []).append(leaf)
    for last, same in together.items():
        if len(same) > 1 and last in _SHARED:
            for value in _others(same[0]):
                yield _field([leaf.path for leaf in same], same[0].value, value)
    for leaf in listed.values():
        for value in _others(leaf):
            yield _field([leaf.path], leaf.value, value)


def _others(leaf: Leaf) -> list[Any]:
    """The values of a field that are in use, without its own."""
    values = _CHOICES[leaf.path]
    if values is None:
        values = get_args(leaf.kind) if get_origin(leaf.kind) is Literal else (False, True)
    return [value for value in values if value != leaf.value]


def _field(paths: Sequence[str], own: Any, value: Any) -> Convention:
    def change(variant: Variant) -> Variant:
        config = variant.config
        for path in paths:
            config = with_value(config, path, value)
        return variant._replace(config=config)

    says = f"{' and '.join(paths)}: {value} there, {own} here"
    return Convention(" and ".join(paths), says, change, paths[0].startswith(_FEATURES))


def _of_pixels(config: DetectorConfig) -> Iterator[Convention]:
    """Channels and pixel values of the input."""
    mean, std = config.image.mean, config.image.std

    def pixels(*, flip: bool = False, mean: Sequence[float] = mean, std: Sequence[float] = std) -> Any:
        return partial(_with_pixels, flip=flip, mean=tuple(mean), std=tuple(std))

    yield Convention(
        "channels swapped",
        "the image enters there with its channels in the other order (BGR for RGB), mean and deviation as here",
        pixels(flip=True, mean=mean[::-1], std=std[::-1]),
        True,
    )
    yield Convention(
        "first convolution swapped",
        "the first convolution reads there the channels in the other order (BGR for RGB); the pixel mean is right",
        pixels(flip=True),
        True,
    )
    if len(set(mean)) > 1:
        says = "pixel mean and deviation are there in the order of the other channels (BGR for RGB)"
        yield Convention("pixel mean swapped", says, pixels(mean=mean[::-1], std=std[::-1]), True)
    yield Convention("pixel mean left out", "no pixel mean is subtracted there", pixels(mean=(0, 0, 0)), True)
    of_imagenet = tuple(value / 255 for value in (58.395, 57.12, 57.375))
    for name, other in (("1", (1 / 255,) * 3), ("ImageNet's", of_imagenet)):
        if max(abs(a - b) for a, b in zip(std, other, strict=True)) > 1e-4:
            says = f"the pixel deviation is {name} there, {_numbers(std)} of 255 here"
            yield Convention("pixel deviation", says, pixels(std=other), True)
    yield Convention(
        "pixels from 0 to 1",
        "pixels are divided by 255 there, and mean and deviation are those of pixels from 0 to 255",
        pixels(mean=[255 * value for value in mean], std=[255 * value for value in std]),
        True,
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{255 * value:.4g}" for value in values)


def _with_pixels(variant: Variant, *, flip: bool, mean: tuple[float, ...], std: tuple[float, ...]) -> Variant:
    config = with_value(with_value(variant.config, "image.mean", mean), "image.std", std)
    if not flip:
        return variant._replace(config=config)
    first = next(name for name, tensor in variant.state.items() if tensor.ndim == 4 and tensor.shape[1] == 3)
    return variant._replace(config=config, state={**variant.state, first: variant.state[first].flip(1)})


def _of_anchors(config: Any) -> Iterator[Convention]:
    """The order of the anchors at a position."""
    if config.anchors is None:
        return
    ratios, sizes = len(config.anchors.ratios), len(config.anchors.sizes[0])
    names = r"(rpn\.(objectness|deltas)|head\.(classes|deltas))\.(weight|bias)"
    if not isinstance(config, OneStageConfig):
        names = r"rpn\.(objectness|deltas)\.(weight|bias)"

    def order(tensor: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        return turn(tensor.unflatten(0, (ratios, sizes, -1))).flatten(0, 2)

    changes: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
        ("anchors of ratios reversed", "height / width is width / height", lambda x: x.flip(0))
    ]
    if sizes > 1:
        says = "they are sorted by size, then by ratio; here by ratio, then by size"
        changes.append(
            ("anchors sorted by size", says, lambda x: x.reshape(sizes, ratios, *x.shape[2:]).transpose(0, 1))
        )
        says = "the layer has them sorted by size, then by ratio, and they are read by ratio, then by size"
        changes.append(("anchors read by ratio", says, lambda x: x.transpose(0, 1).reshape(x.shape)))
        changes.append(("anchors of sizes reversed", "the largest size comes first", lambda x: x.flip(1)))
    for name, says, turn in changes:
        change = partial(_with_tensors, names=names, function=partial(order, turn=turn))
        yield Convention(name, f"the anchors of a position are ordered otherwise there: {says}", change)


def _of_boxes(config: Any) -> Iterator[Convention]:
    """The order of a box's four deltas, and of a region's values."""

    def yx(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (-1, 4))[:, [1, 0, 3, 2]].flatten(0, 1)

    says = "deltas are dy, dx, dh, dw there, dx, dy, dw, dh here"
    yield Convention("deltas in the order y, x", says, partial(_with_tensors, names=DELTAS, function=yx))
    if isinstance(config, OneStageConfig):
        return
    side = getattr(config.roi, "size", 7)

    def channel_first(weight: Tensor) -> Tensor:
        return weight.unflatten(1, (-1, side, side)).permute(0, 2, 3, 1).flatten(1)

    def channel_last(weight: Tensor) -> Tensor:
        return weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2).flatten(1)

    says = "the first linear layer gets a region's values there by {}, and has been learned on the other order"
    for name, order, function in (
        ("regions flattened channel first", "channel, row, column", channel_first),
        ("regions flattened channel last", "row, column, channel", channel_last),
    ):
        change = partial(_with_tensors, names=r"head\..*body\.(fc6|fc)\.weight", function=function)
        yield Convention(name, says.format(order), change)


def _of_classes(config: Any) -> Iterator[Convention]:
    """Where background is, and from where classes are counted."""
    if isinstance(config, OneStageConfig):
        return

    def rolled(variant: Variant, *, rows: Callable[[Tensor], Tensor], boxes: int) -> Variant:
        """The rows of the class layers changed, and the boxes and masks of so many classes further."""
        classes = variant.num_classes

        def scores(tensor: Tensor) -> Tensor:
            return rows(tensor) if len(tensor) == classes + 1 else tensor  # a mask's layer has no background

        def deltas(tensor: Tensor) -> Tensor:
            return tensor.roll(4 * boxes, 0) if len(tensor) == 4 * classes else tensor

        def masks(tensor: Tensor) -> Tensor:
            return tensor.roll(boxes, 0) if len(tensor) == classes else tensor

        changed = _with_tensors(variant, names=r"head\..*classes\.(weight|bias)", function=scores)
        changed = _with_tensors(changed, names=r"head\.mask\.(\d\.)?classes\.(weight|bias)", function=masks)
        return _with_tensors(changed, names=r"head\..*deltas\.(weight|bias)", function=deltas)

    last = "the last row of the class layer is taken for background there, as in detectron2; here it is the first"
    for name, says, boxes in (
        ("background last", f"{last}. Each class has its own boxes", 1),
        ("background last, boxes by row", f"{last}. Boxes stay where they are", 0),
    ):
        yield Convention(name, says, partial(rolled, rows=lambda x: x.roll(1, 0), boxes=boxes))
    says = (
        "the first row of the class layer is taken for background there, as in torchvision, though the file has it last"
    )
    yield Convention("background first", says, partial(rolled, rows=lambda x: x.roll(-1, 0), boxes=0))
    for by, says in ((1, "one higher"), (-1, "one lower")):
        shift = partial(_shifted, by=by)
        name = f"classes {says}"
        yield Convention(name, f"classes have numbers {says} there", partial(rolled, rows=shift, boxes=by))


def _shifted(rows: Tensor, *, by: int) -> Tensor:
    rows = rows.clone()
    rows[1:] = rows[1:].roll(by, 0)
    return rows


def _with_tensors(variant: Variant, *, names: str, function: Callable[[Tensor], Tensor]) -> Variant:
    state = {name: function(value) if re.fullmatch(names, name) else value for name, value in variant.state.items()}
    return variant._replace(state=state)
