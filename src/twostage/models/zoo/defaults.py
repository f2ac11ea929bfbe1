"""The fields that the named detectors begin with."""

from dataclasses import replace

from twostage.models.fields import Fields

MODERN = Fields()
C4 = replace(
    MODERN,
    divisor=1,
    anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
    anchor_rounding="none",
    anchor_stride="fixed",
    rpn_top_train=12000,
    rpn_top_test=6000,
    roi_size=14,
    roi_sampling_ratio=0,
    roi_aligned=True,
)
DC5 = replace(C4, roi_size=7, rpn_channels=512)
V2 = replace(MODERN, norm="batch", rpn_convs=2, head_convs=4)
MOBILE = replace(MODERN, anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),) * 3, rpn_score_threshold=0.05)
MOBILE_320 = replace(MOBILE, size=320, max_size=640, rpn_top_test=150, rpn_keep_test=150)
TINY = replace(
    MODERN,
    size=320,
    max_size=640,
    norm="batch",
    anchor_sizes=((16.0,), (32.0,), (64.0,), (128.0,)),
    anchor_rounding="none",
    anchor_stride="fixed",
    rpn_top_train=500,
    rpn_top_test=300,
    rpn_keep_train=300,
    rpn_keep_test=300,
    rpn_batch=128,
    roi_aligned=True,
    region_batch=128,
    region_positive_fraction=0.5,
    head_channels=256,
    class_agnostic=True,
    # Worth 1.2 points of AP on the cells of the blood-cells validation split, which touch. With `nms` 0.5, what scores
    # 0.5 or more is what hard NMS keeps.
    soft_nms="linear",
    recipe="scratch",
)
# Of some 60 positives an image. On hard scenes worth 7 points of mask AP in the same three minutes of Mask R-CNN, 11 of
# Cascade Mask R-CNN: steps take six tenths of the time.
TINY_MASKS = replace(TINY, mask_channels=64, mask_regions=8)
TINY_SINGLE = replace(
    TINY,
    anchor_sizes=((16.0, 32.0, 64.0, 128.0),),
    rpn_top_train=2000,
    rpn_top_test=1000,
    roi="pool",
    # As the papers: a quarter of the regions positive, a box for every class.
    region_positive_fraction=0.25,
    class_agnostic=False,
)
