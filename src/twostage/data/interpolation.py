"""Bilinear interpolation of an image in floating point, in numpy; `data.uint8_resize` has that in whole grey levels.

An axis is interpolated after the other: each new row is a weighted sum of few old ones.
"""

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

Pixels = UInt8[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]


def bilinear(
    image: Pixels,
    height: int,
    width: int,
    steps: tuple[float, float],
    *,
    mirrored: bool = False,
    places: type[np.floating] = np.float64,
) -> Float32[np.ndarray, "{height} {width} 3"]:
    """Between the two nearest pixels at centres `steps` apart along y and x.

    Outside the image its outermost pixel counts, or the `mirrored` image. The centres are computed in the type
    `places`; `torch.nn.functional.interpolate` has float32.
    """
    out: NDArray = image
    for axis, (new, step) in enumerate(zip((height, width), steps, strict=True)):
        last = out.shape[axis] - 1
        # Rounded once, as by a fused multiplication and addition.
        centres = ((np.arange(new) + 0.5) * float(places(step)) - 0.5).astype(places)
        first = np.floor(centres).astype(np.int64)
        share = (centres - first).astype(np.float32)
        taps = [np.abs(k) if mirrored else k.clip(0) for k in (first, first + 1)]
        if mirrored:
            taps = [np.minimum(k, 2 * last - k) for k in taps]
        out = _weighted(out, axis, [k.clip(0, last) for k in taps], [1 - share, share])
    return out


def antialiased(image: Pixels, height: int, width: int) -> Float32[np.ndarray, "{height} {width} 3"]:
    """Over all pixels that a new one covers, nearer ones more: `torch.nn.functional.interpolate` with `antialias`."""
    out: NDArray = image
    for axis, new in enumerate((height, width)):
        old = out.shape[axis]
        scale = np.float32(old / new)
        reach = max(scale, np.float32(1))
        centres = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale
        first = (centres - reach + 0.5).astype(np.int64).clip(0)
        end = (centres + reach + 0.5).astype(np.int64).clip(None, old)
        taps = [first + k for k in range(int((end - first).max()))]
        weights = [(1 - np.abs((k + np.float32(0.5) - centres) / reach)).clip(0) * (k < end) for k in taps]
        total = sum(weights)
        shares = [(weight / total).astype(np.float32) for weight in weights]
        out = _weighted(out, axis, [k.clip(0, old - 1) for k in taps], shares)
    return out


def _weighted(image: NDArray, axis: int, taps: list[NDArray], shares: list[NDArray]) -> NDArray:
    """The sum of rows or columns at `taps`, each with its share."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    out = image.take(taps[0], axis).astype(np.float32)
    out *= shares[0].reshape(shape)
    for at, share in zip(taps[1:], shares[1:], strict=True):
        out += image.take(at, axis) * share.reshape(shape)
    return out
