"""Selective search (Uijlings et al. 2013): the boxes of an image's regions, merged from small to large.

The graph-based segmentation (Felzenszwalb and Huttenlocher 2004) of the image in several colour spaces is merged, the
most similar neighbours first, until one region is left; every region on the way is a proposal. OpenCV's `ximgproc`
computes the regions; the order is drawn here.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from twostage.data.randomness import generator
from twostage.errors import MissingError

Mode = Literal["fast", "quality"]

WIDTH = 500  # wider images are shrunk to this width in pixels (R-CNN, section 2.2)
INSTALL = "pip install 'twostage[lineage]'"


def selective_search(
    image: UInt8[np.ndarray, "h w 3"], mode: Mode = "fast", *, seed: int = 0, width: int = WIDTH
) -> Float32[np.ndarray, "p 4"]:
    """Boxes of an image (RGB), xyxy pixels, best first; the same for the same seed.

    "fast" takes 2 colour spaces, 2 segmentations and 2 measures of similarity, "quality" 5, 4 and 4
    (Uijlings et al. 2013, table 5, as OpenCV has it). Raises MissingError without the extra `lineage`.
    """
    cv2 = opencv()
    height, full = image.shape[:2]
    scale = min(1.0, width / full)
    small = image
    if scale < 1:
        small = cv2.resize(image, (width, max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(small[..., ::-1]))  # OpenCV's images are BGR
    search.switchToSelectiveSearchFast() if mode == "fast" else search.switchToSelectiveSearchQuality()
    xywh = np.asarray(search.process(), dtype=np.float32).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    ranked = boxes[rank(boxes, seed)]
    back = np.array([full / small.shape[1], height / small.shape[0]] * 2, dtype=np.float32)
    return np.minimum(ranked * back, np.array([full, height] * 2, dtype=np.float32))


def rank(boxes: Float32[np.ndarray, "p 4"], seed: int) -> Int64[np.ndarray, " p"]:
    """The order in which boxes are proposed: a permutation drawn from the seed, independent of the order given.

    The paper multiplies a box's rank in its hierarchy, counted from the whole image down, by a random number, so that
    large boxes tend to come first (section 4.3). OpenCV counts from the smallest regions up, draws from the C library's
    global generator, and does not return the ranks. A plain permutation has a higher recall than OpenCV's order with 50
    or 100 boxes, and about the same from 300 on (benchmarks/results/proposals.md).
    """
    order = np.lexsort(boxes.T[::-1])  # the same for every order of OpenCV's
    return order[generator(seed, len(boxes)).permutation(len(boxes))]


def opencv() -> Any:
    """OpenCV with its contributed modules. Raises MissingError."""
    try:
        import cv2

        cv2.ximgproc.segmentation  # noqa: B018
    except ImportError:
        raise MissingError(f"Selective search needs OpenCV with its contributed modules: {INSTALL}") from None
    except AttributeError:
        raise MissingError(
            "The installed OpenCV lacks its contributed modules (ximgproc): "
            f"pip uninstall opencv-python opencv-python-headless, then {INSTALL}"
        ) from None
    return cv2
