"""Every number of a Faster R-CNN that papers and projects choose differently, each a field saved with the model.

`Fields()` are the common modern defaults (torchvision's detectors with a feature pyramid). `PAPER` are those of the
Faster R-CNN paper (Ren et al. 2015) with py-faster-rcnn's where the paper is silent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import inf, isfinite
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from twostage.data.resize import Resize
from twostage.errors import UsageError, nearest
from twostage.ops.deltas import CLAMP


class Within(NamedTuple):
    """The smallest and the largest value a number may have."""

    lowest: float
    highest: float = inf


Positive = Annotated[float, Within(1e-3)]
Count = Annotated[int, Within(1)]
CountFromZero = Annotated[int, Within(0)]
Share = Annotated[float, Within(0, 1)]
NotNegative = Annotated[float, Within(0)]
Quad = tuple[Positive, Positive, Positive, Positive]


@dataclass(frozen=True)
class Fields:
    """The fields of a Faster R-CNN; see each one's comment for its unit and its source."""

    # Image: see data.resize.Resize. The mean and the standard deviation are of RGB in 0..1.
    resize: Literal["shortest", "fixed"] = "shortest"
    size: Count = 800
    max_size: Count = 1333
    antialias: bool = False
    rounding: Literal["floor", "nearest"] = "floor"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    divisor: Count = 32  # the canvas is padded to a multiple of this

    # Backbone
    norm: Literal["frozen", "batch", "group"] = "frozen"
    norm_eps: NotNegative = 1e-5  # torchvision's COCO_V1 ResNet-50 wants 0.0

    # Anchors: side lengths in pixels per level, height / width ratios.
    anchor_sizes: tuple[tuple[Positive, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    anchor_offset: float = 0.0  # pixels from a cell's corner to the anchors' centre: 0, half a stride, Caffe's 7.5
    anchor_rounding: Literal["none", "nearest", "caffe"] = (
        "nearest"  # torchvision rounds; caffe is py-faster-rcnn's way
    )
    anchor_stride: Literal["canvas", "fixed"] = "canvas"  # torchvision divides the canvas by the map, others fix it
    anchors_in_padding: bool = True  # torchvision and detectron2 also propose from the canvas beside an image

    # Region proposal network
    rpn_channels: Count | None = None  # None: as many as the map has
    rpn_convs: Count = 1
    rpn_objectness: Literal["sigmoid", "softmax"] = "sigmoid"
    rpn_delta_weights: Quad = (1.0, 1.0, 1.0, 1.0)
    rpn_positive_iou: Share = 0.7
    rpn_negative_iou: Share = 0.3
    rpn_cross_boundary: bool = True  # False: anchors across the image's border are left out of training
    rpn_batch: Count = 256
    rpn_positive_fraction: Share = 0.5
    rpn_class_normaliser: Positive | Literal["sampled"] = "sampled"  # N_cls: a number an image, or all sampled anchors
    rpn_box_normaliser: Literal["sampled", "locations"] = "sampled"  # N_reg: sampled anchors, or map positions
    rpn_lambda: NotNegative = 1.0
    rpn_beta: NotNegative = 1 / 9  # smooth L1 turns from square to linear here
    rpn_top_train: Count = 2000  # before NMS, per level
    rpn_top_test: Count = 1000
    rpn_keep_train: Count = 2000  # after NMS, all levels together
    rpn_keep_test: Count = 1000
    rpn_nms: Share = 0.7
    rpn_min_size: NotNegative = 1e-3  # pixels of the resized image (py-faster-rcnn: of the original)
    rpn_score_threshold: Share = 0.0  # probability of being an object

    # Regions
    roi_size: Count = 7
    roi_sampling_ratio: CountFromZero = 2  # 0: as many points as the bin has pixels
    roi_max_samples: Count | None = 8  # then at most so many along each axis of a bin; None, on a CPU only: no limit
    roi_aligned: bool = False
    level_eps: NotNegative = 1e-6
    level_canonical_size: Positive = 224.0  # a box of this size is read from level 4 (FPN, section 4.2)

    # Box head
    head_channels: Count = 1024
    head_convs: CountFromZero = 0
    dropout: Share = 0.0
    class_agnostic: bool = False
    box_delta_weights: Quad = (10.0, 10.0, 5.0, 5.0)  # deltas divided by 0.1, 0.1, 0.2, 0.2
    delta_clamp: NotNegative = CLAMP
    delta_clamp_two_sided: bool = False
    region_batch: Count = 512
    region_positive_fraction: Share = 0.25
    region_positive_iou: Share = 0.5
    region_background_iou: tuple[Share, Share] = (0.0, 0.5)
    region_truth: bool = True  # ground-truth boxes join the proposals in training
    box_beta: NotNegative = 1 / 9
    box_lambda: NotNegative = 1.0  # of the box loss against the class loss (Fast R-CNN, equation 1)

    # Detections
    score_threshold: Share = 0.05
    nms: Share = 0.5
    nms_across_classes: bool = False
    soft_nms: Literal["off", "linear", "gaussian"] = "off"
    soft_nms_sigma: Positive = 0.5
    max_det: Count = 100
    min_box_size: NotNegative = 1e-2
    candidates: Count | None = None  # boxes an image that enter the last NMS; None: all that can pass the threshold

    # Training
    recipe: Literal["finetune", "paper", "paper_zf", "scratch"] = "finetune"  # see training.recipe

    @property
    def resizing(self) -> Resize:
        """The resize rule as the data room knows it."""
        return Resize(self.resize, self.size, self.max_size, self.antialias, self.rounding)

    def changed(self, changes: Mapping[str, Any]) -> "Fields":
        """These fields with some replaced; values may come from JSON or the command line.

        A `size` without a `max_size` keeps the ratio of the two. Raises UsageError for an unknown name (the nearest is
        shown) or a value of the wrong kind.
        """
        require_known(changes)
        kinds = {f.name: f.type for f in fields(self)}
        fitted = {name: _fitted(name, value, kinds[name]) for name, value in changes.items()}
        if "size" in fitted and "max_size" not in fitted:
            fitted["max_size"] = round(fitted["size"] * self.max_size / self.size)
        return replace(self, **fitted)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a weights file or a configuration."""
        return asdict(self)


def require_known(names: Iterable[str]) -> None:
    """Raises UsageError for what is no field of a model; the nearest is shown."""
    known = [f.name for f in fields(Fields)]
    for name in names:
        if name not in known:
            raise UsageError(f"The model has no field {name!r}. {nearest(name, known)}")


PAPER = Fields(
    size=600,
    max_size=1000,
    divisor=1,
    anchor_sizes=((128.0, 256.0, 512.0),),
    anchor_rounding="none",
    anchor_stride="fixed",
    anchors_in_padding=False,
    rpn_objectness="softmax",
    rpn_cross_boundary=False,
    rpn_class_normaliser=256.0,
    rpn_box_normaliser="locations",
    rpn_lambda=10.0,
    rpn_beta=1.0,
    rpn_top_train=12000,
    rpn_top_test=6000,
    rpn_keep_train=2000,
    rpn_keep_test=300,
    rpn_min_size=16.0,
    head_channels=4096,
    dropout=0.5,
    region_batch=128,
    box_beta=1.0,
    nms=0.3,
    recipe="paper",
)


def _fitted(name: str, value: Any, kind: Any) -> Any:
    """The value as the field's type wants it: lists become tuples, whole numbers become floats."""
    value = _converted(value, kind)
    if not _is_a(value, kind):
        raise UsageError(f"The model's field {name} cannot be {value!r}: it takes {_described(kind)}.")
    return value


def _converted(value: Any, kind: Any) -> Any:
    options = get_args(kind)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else [*options, *[None] * len(value)]
        return tuple(_converted(v, k) for v, k in zip(value, kinds, strict=False))
    for option in options if get_origin(kind) is not Literal else ():
        value = _converted(value, option)
    return float(value) if kind is float and isinstance(value, int) and not isinstance(value, bool) else value


def _is_a(value: Any, kind: Any) -> bool:
    options = get_args(kind)
    if get_origin(kind) is Annotated:
        plain, within = options
        return _is_a(value, plain) and within.lowest <= value <= within.highest
    if get_origin(kind) is Literal:
        return value in options
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        if options[-1] is Ellipsis:
            return len(value) > 0 and all(_is_a(v, options[0]) for v in value)
        return len(value) == len(options) and all(_is_a(v, k) for v, k in zip(value, options, strict=True))
    if options:
        return any(_is_a(value, k) for k in options)
    if kind is float:
        return isinstance(value, float) and isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    options = get_args(kind)
    if get_origin(kind) is Annotated:
        plain, within = options
        return f"{_described(plain)} " + (
            f"of at least {within.lowest:g}"
            if within.highest == inf
            else f"from {within.lowest:g} to {within.highest:g}"
        )
    if get_origin(kind) is Literal:
        return " or ".join(repr(v) for v in options)
    if get_origin(kind) is tuple:
        count = "one or more" if options[-1] is Ellipsis else str(len(options))
        return f"a list of {count}, each {_described(options[0])}"
    if options:
        return " or ".join(_described(k) for k in options)
    return {"float": "a number", "int": "a whole number", "bool": "true or false"}.get(kind.__name__, "nothing")
