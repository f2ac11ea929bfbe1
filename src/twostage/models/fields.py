"""Every number of a Faster R-CNN that papers and projects choose differently, each a field saved with the model.

`Fields()` are the common modern defaults (torchvision's detectors with a feature pyramid). `PAPER` are those of the
Faster R-CNN paper (Ren et al. 2015) with py-faster-rcnn's where the paper is silent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from twostage.data.resize import Resize
from twostage.errors import UsageError, nearest
from twostage.kinds import Within, coerce, describe, matches
from twostage.ops.deltas import CLAMP

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
    # How models named *_fpn see objects of every size; see models.backbones.pyramids.
    pyramid: Literal["top_down", "levels", "single", "image"] = "top_down"

    # Where proposals come from: the model's own network, the pixels (models.proposals.sources), or a file.
    proposals: Literal["network", "selective_search", "selective_search_quality", "sliding_window", "file"] = "network"

    proposals_seed: CountFromZero = 0  # of the draw that orders selective search's regions, or windows

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
    objectness_loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    rpn_top_train: Count = 2000  # before NMS, per level
    rpn_top_test: Count = 1000
    rpn_keep_train: Count = 2000  # after NMS, all levels together; of proposals from elsewhere the best so many
    rpn_keep_test: Count = 1000
    rpn_nms: Share = 0.7
    rpn_min_size: NotNegative = 1e-3  # pixels of the resized image (py-faster-rcnn: of the original)
    rpn_score_threshold: Share = 0.0  # probability of being an object

    # RetinaNet's towers (Lin et al. 2017, "Focal Loss"): a proposal network that tells classes.
    dense_convs: CountFromZero = 4
    dense_norm: Literal["none", "group"] = "none"  # behind each of them

    # True: the regions' loss also moves the proposals' corners (section 3.2, "non-approximate joint training").
    proposal_gradient: bool = False

    # Regions
    roi: Literal["align", "pool"] = "align"  # Mask R-CNN's, or Fast R-CNN's from a single map
    roi_size: Count = 7
    roi_sampling_ratio: CountFromZero = 2  # 0: as many points as the bin has pixels
    roi_max_samples: Count | None = 8  # then at most so many along each axis of a bin; None, on a CPU only: no limit
    roi_aligned: bool = False
    level_eps: NotNegative = 1e-6
    level_canonical_size: Positive = 224.0  # a box of this size is read from level 4 (FPN, section 4.2)

    # Box head
    head_channels: Count = 1024
    head_convs: CountFromZero = 0
    # At test fc6 and fc7 as products of two matrices of these ranks (Fast R-CNN, section 3.1: 1024 and 256).
    head_ranks: tuple[Count, Count] | None = None
    dropout: Share = 0.0
    class_agnostic: bool = False
    box_delta_weights: Quad = (10.0, 10.0, 5.0, 5.0)  # deltas divided by 0.1, 0.1, 0.2, 0.2
    delta_clamp: NotNegative = CLAMP
    delta_clamp_two_sided: bool = False
    region_batch: Count = 512
    region_positive_fraction: Share = 0.25
    region_positive_iou: Share = 0.5
    region_background_iou: tuple[Share, Share] = (0.0, 0.5)
    region_truth: bool = True  # ground-truth boxes join the proposals in training, of a cascade's first stage
    # "ohem" takes the regions that are told worst (Shrivastava et al. 2016), and looks at all of them to know.
    region_sampling: Literal["random", "ohem"] = "random"
    box_loss: Literal["smooth_l1", "l1", "giou", "diou", "ciou"] = "smooth_l1"  # the last three of the moved box
    box_beta: NotNegative = 1 / 9
    box_lambda: NotNegative = 1.0  # of the box loss against the class loss (Fast R-CNN, equation 1)

    class_loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    class_weights: tuple[NotNegative, ...] | None = None  # one a class, background counts 1; None: all alike
    label_smoothing: Share = 0.0
    focal_gamma: NotNegative = 2.0  # of every focal loss (Lin et al. 2017)
    focal_alpha: Share = 0.25  # of those of one logit

    # Cascade (Cai and Vasconcelos 2018): one value a stage
    cascade_ious: tuple[Share, ...] = (0.5, 0.6, 0.7)
    cascade_delta_weights: tuple[Quad, ...] = (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    )
    cascade_loss_weights: tuple[NotNegative, ...] = (1.0, 0.5, 0.25)  # mmdetection's; detectron2 has 1, 1, 1
    cascade_gradient: NotNegative = 1.0  # of the gradient that each stage sends to the maps; detectron2 has 1/3

    # Mask head (Mask R-CNN, sections 3 and 3.1)
    mask_size: Count = 14  # side of the pooled region; masks have twice as many cells
    mask_channels: Count = 256
    mask_convs: CountFromZero = 4
    mask_regions: Count | None = None  # an image, drawn of its positives, whose masks are learned; None: of all
    mask_lambda: NotNegative = 1.0  # of the mask loss against the others
    mask_threshold: Share = 0.5  # of the probability, in the picture
    # torchvision lays a mask over the box of whole pixels around an object, detectron2 and mmdetection over the box.
    mask_paste: Literal["exact", "rounded"] = "exact"

    # Hybrid Task Cascade (Chen et al. 2019)
    htc_interleaved: bool = True
    htc_mask_flow: bool = True
    # Classes of stuff that a semantic branch tells apart: 0 without the branch, "data" as many as the data set has.
    semantic_classes: CountFromZero | Literal["data"] = 0
    semantic_convs: CountFromZero = 4
    semantic_lambda: NotNegative = 0.2  # mmdetection's; the paper has 1

    # Detections
    score_threshold: Share = 0.05
    nms: Share = 0.5
    nms_across_classes: bool = False
    soft_nms: Literal["off", "linear", "gaussian"] = "off"
    soft_nms_sigma: Positive = 0.5
    max_det: Count = 100
    min_box_size: NotNegative = 1e-2
    candidates: Count | None = None  # boxes an image that enter the last NMS; None: all, on a GPU the best 4096

    # Training
    # See training.recipe.
    recipe: Literal["finetune", "finetune_dense", "paper", "paper_zf", "paper_fast", "paper_fast_zf", "scratch"] = (
        "finetune"
    )

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
        values = {name: coerce(value, kinds[name]) for name, value in changes.items()}
        for name, value in values.items():
            if not matches(value, kinds[name]):
                raise UsageError(f"The model's field {name} cannot be {value!r}: it takes {describe(kinds[name])}.")
        if "size" in values and "max_size" not in values:
            values["max_size"] = round(values["size"] * self.max_size / self.size)
        return replace(self, **values)

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
    roi="pool",
    head_channels=4096,
    dropout=0.5,
    region_batch=128,
    box_beta=1.0,
    nms=0.3,
    recipe="paper",
)

# Fast R-CNN (Girshick 2015), sections 2.3 and 4.1: 2 images of 64 regions, background at IoU 0.1 to 0.5.
FAST = replace(
    PAPER,
    proposals="selective_search",
    rpn_keep_test=2000,
    region_batch=64,
    region_background_iou=(0.1, 0.5),
    recipe="paper_fast",
)
