"""Sliding windows: boxes of fixed sizes and shapes at regular steps, the baseline before region proposals.

Overfeat and the one-stage comparison of Faster R-CNN (section 4.1, table 10) classify such windows.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from twostage.data.randomness import generator

SCALES = (1.0, 0.5, 0.25, 0.125)  # a window's side as a share of the image's shorter one
RATIOS = (0.5, 1.0, 2.0)  # height / width
STEP = 0.25  # of the window's side


def sliding_windows(
    height: int,
    width: int,
    *,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
    step: float = STEP,
    seed: int = 0,
) -> Float32[np.ndarray, "p 4"]:
    """Windows of an image, xyxy pixels, all inside it; in random order, so that the first n are spread over all kinds.

    Windows of one size and shape are evenly spaced from border to border, by at most `step` of their side.
    """
    windows = [np.array([[0, 0, width, height]], dtype=np.float32)]
    for scale in scales:
        for ratio in ratios:
            side = scale * min(height, width)
            w, h = min(width, side / ratio**0.5), min(height, side * ratio**0.5)
            x, y = _starts(width, w, step), _starts(height, h, step)
            corner = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
            windows.append(np.concatenate([corner, corner + np.array([w, h])], axis=1).astype(np.float32))
    boxes = np.minimum(np.concatenate(windows), np.array([width, height] * 2, dtype=np.float32))
    return boxes[generator(seed, height, width).permutation(len(boxes))]


def _starts(extent: int, side: float, step: float) -> np.ndarray:
    return np.linspace(0, extent - side, int(np.ceil((extent - side) / (step * side))) + 1)
