"""What keeps objects from being found: the steps of a prediction, and the causes at which the boxes of one can end."""

from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Step(StrEnum):
    """The steps of a prediction in order. Those of the RPN are missing where there is none."""

    ANCHOR = "anchors"  # before they are moved
    DECODED = "decoded anchors"
    RANKED = "best anchors"
    DISTINCT_PROPOSAL = "after RPN NMS"
    REGION = "proposals"
    REFINED = "refined boxes"
    SCORED = "above the threshold"
    DISTINCT = "after class NMS"
    FOUND = "detections"


class Cause(StrEnum):
    """Why an object was missed: where the boxes that came furthest ended."""

    NO_ANCHOR = "no anchor's decoded box"
    NO_PROPOSAL = "no proposal"  # of those that come from elsewhere
    BELOW_TOP_K = "ranked below top-k"
    TOO_SMALL = "below the minimum size"
    RPN_NMS = "killed by RPN NMS"
    BELOW_TOP_N = "cut by top-n"
    REFINED_AWAY = "refined away"
    BACKGROUND = "seen as background"
    OTHER_CLASS = "seen as another class"
    BELOW_THRESHOLD = "below the score threshold"
    CLASS_NMS = "killed by class NMS"
    BEYOND_MAX_DET = "past the maximum"
    OTHER_OBJECT = "its detection is another object's"


class Change(NamedTuple):
    """Another value of a setting, by its path in the configuration, and the present one."""

    field: str
    value: float
    now: float


class Miss(NamedTuple):
    """A missed object: the cause, what shows it, and changes of one setting that may mend it, the smallest first.

    `detail` has plain values; boxes are xyxy pixels of the image. Of the box that came furthest: `box`, `iou` with the
    object, `score`, `rank` (from 1). Of the box that suppressed it: `by_box`, `by_score`, `by_label`, `by_iou`. Of a
    region that was seen as something else: `seen_as` and `seen_score`.
    """

    cause: Cause
    detail: dict[str, Any]
    changes: tuple[Change, ...] = ()


class Account(NamedTuple):
    """Of the objects of an image: the steps at which a box had an IoU of at least 0.5 with each, and why it was missed.

    `misses` are by the object's place. `anchor_iou` is the best before decoding, 0 without anchors.
    """

    reached: dict[Step, Bool[np.ndarray, " g"]]
    misses: dict[int, Miss]
    anchor_iou: Float[np.ndarray, " g"]
