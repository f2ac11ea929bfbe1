"""Every number of a Faster R-CNN that papers and projects choose differently, each a field saved with the model.

`Fields()` are the common modern defaults (torchvision's detectors with a feature pyramid). `PAPER` are those of the
Faster R-CNN paper (Ren et al. 2015) with py-faster-rcnn's where the paper is silent.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import log
from typing import Any, Literal, get_args, get_origin

from twostage.data.resize import Resize
from twostage.errors import UsageError, nearest

Quad = tuple[float, float, float, float]


@dataclass(frozen=True)
class Fields:
    """The fields of a Faster R-CNN; see each one's comment for its unit and its source."""

    # Image: see data.resize.Resize. The mean and the standard deviation are of RGB in 0..1.
    resize: Literal["shortest", "fixed"] = "shortest"
    size: int = 800
    max_size: int = 1333
    antialias: bool = False
    rounding: Literal["floor", "nearest"] = "floor"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    divisor: int = 32  # the canvas is padded to a multiple of this

    # Backbone
    norm: Literal["frozen", "batch", "group"] = "frozen"
    norm_eps: float = 1e-5  # torchvision's COCO_V1 ResNet-50 wants 0.0

    # Anchors: side lengths in pixels per level, height / width ratios.
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_offset: float = 0.0  # pixels from a cell's corner to the anchors' centre: 0, half a stride, Caffe's 7.5
    anchor_rounding: Literal["none", "nearest", "caffe"] = "nearest"  # torchvision rounds; caffe is py-faster-rcnn's way
    anchor_stride: Literal["canvas", "fixed"] = "canvas"  # torchvision divides the canvas by the map, others fix it
    anchors_in_padding: bool = True  # torchvision and detectron2 also propose from the canvas beside an image

    # Region proposal network
    rpn_channels: int | None = None  # None: as many as the map has
    rpn_convs: int = 1
    rpn_objectness: Literal["sigmoid", "softmax"] = "sigmoid"
    rpn_delta_weights: Quad = (1.0, 1.0, 1.0, 1.0)
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_cross_boundary: bool = True  # False: anchors across the image's border are left out of training
    rpn_batch: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_class_normaliser: float | Literal["sampled"] = "sampled"  # N_cls: a number an image, or all sampled anchors
    rpn_box_normaliser: Literal["sampled", "locations"] = "sampled"  # N_reg: sampled anchors, or map positions
    rpn_lambda: float = 1.0
    rpn_beta: float = 1 / 9  # smooth L1 turns from square to linear here
    rpn_top_train: int = 2000  # before NMS, per level
    rpn_top_test: int = 1000
    rpn_keep_train: int = 2000  # after NMS, all levels together
    rpn_keep_test: int = 1000
    rpn_nms: float = 0.7
    rpn_min_size: float = 1e-3  # pixels of the network's input
    rpn_score_threshold: float = 0.0  # probability of being an object

    # Regions
    roi_size: int = 7
    roi_sampling_ratio: int = 2  # 0: as many points as the bin has pixels
    roi_aligned: bool = False
    level_eps: float = 1e-6
    level_canonical_size: float = 224.0  # a box of this size is read from level 4 (FPN, section 4.2)

    # Box head
    head_channels: int = 1024
    head_convs: int = 0
    dropout: float = 0.0
    class_agnostic: bool = False
    box_delta_weights: Quad = (10.0, 10.0, 5.0, 5.0)  # deltas divided by 0.1, 0.1, 0.2, 0.2
    delta_clamp: float = log(1000 / 16)
    delta_clamp_two_sided: bool = False
    region_batch: int = 512
    region_positive_fraction: float = 0.25
    region_positive_iou: float = 0.5
    region_background_iou: tuple[float, float] = (0.0, 0.5)
    region_truth: bool = True  # ground-truth boxes join the proposals in training
    box_beta: float = 1 / 9

    # Detections
    score_threshold: float = 0.05
    nms: float = 0.5
    nms_across_classes: bool = False
    soft_nms: Literal["off", "linear", "gaussian"] = "off"
    soft_nms_sigma: float = 0.5
    max_det: int = 100
    min_box_size: float = 1e-2
    candidates: int | None = None  # boxes an image that enter the last NMS; None: all that can pass the threshold

    # Training
    recipe: Literal["finetune", "paper", "scratch"] = "finetune"  # see training.recipe

    @property
    def resizing(self) -> Resize:
        """The resize rule as the data room knows it."""
        return Resize(self.resize, self.size, self.max_size, self.antialias, self.rounding)

    def changed(self, changes: Mapping[str, Any]) -> "Fields":
        """These fields with some replaced; values may come from JSON or the command line.

        Raises UsageError for an unknown name (the nearest is shown) or a value of the wrong kind.
        """
        kinds = {f.name: f.type for f in fields(self)}
        for name in changes:
            if name not in kinds:
                raise UsageError(f"The model has no field {name!r}. {nearest(name, kinds)}")
        return replace(self, **{name: _fitted(name, value, kinds[name]) for name, value in changes.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a weights file or a configuration."""
        return asdict(self)


PAPER = Fields(
    size=600,
    max_size=1000,
    divisor=1,
    anchor_sizes=((128, 256, 512),),
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
    if isinstance(value, list | tuple):
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if isinstance(value, int) and not isinstance(value, bool) and kind in (float, float | Literal["sampled"]):
        value = float(value)
    if not _is_a(value, kind):
        raise UsageError(f"The model's field {name} cannot be {value!r}: it takes {_described(kind)}.")
    return value


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if inner[-1] is Ellipsis:
            return len(value) > 0 and all(_is_a(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(_is_a(v, k) for v, k in zip(value, inner, strict=True))
    if get_args(kind):
        return any(_is_a(value, k) for k in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(repr(v) for v in get_args(kind))
    if get_origin(kind) is None:
        return {"float": "a number", "int": "a whole number", "bool": "true or false"}.get(kind.__name__, "nothing")
    if get_origin(kind) is tuple:
        return f"a list such as {getattr(kind, '__name__', kind)}"
    return " or ".join(_described(k) for k in get_args(kind))
