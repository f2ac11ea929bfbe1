"""The shape of an image after resizing, and the way back to its own pixels; plain numbers in, plain numbers out."""

from typing import Literal, Protocol, runtime_checkable

By = Literal["torch", "pillow", "opencv", "caffe", "skimage"]


@runtime_checkable
class ResizeRule(Protocol):
    """The fields of `data.resize.Resize` that decide about shapes."""

    @property
    def mode(self) -> Literal["shortest", "fixed", "none"]: ...
    @property
    def size(self) -> int: ...
    @property
    def max_size(self) -> int: ...
    @property
    def rounding(self) -> Literal["floor", "nearest"]: ...
    @property
    def by(self) -> By: ...


def resized_shape(rule: ResizeRule, height: int, width: int) -> tuple[int, int]:
    """Height and width after resizing an image of this height and width."""
    if rule.mode == "fixed":
        return rule.size, rule.size
    if rule.mode == "none":
        return height, width
    scale = resize_scale(rule, height, width)
    if rule.by in ("caffe", "skimage"):  # halves go to the even number, by OpenCV, SciPy and Python
        return max(1, round(height * scale)), max(1, round(width * scale))
    half = 0.5 if rule.rounding == "nearest" else 0.0
    return max(1, int(height * scale + half)), max(1, int(width * scale + half))


def resize_scale(rule: ResizeRule, height: int, width: int) -> float:
    """The factor of `shortest` before rounding to whole pixels."""
    if rule.by == "caffe" and round(rule.size / min(height, width) * max(height, width)) <= rule.max_size:
        return rule.size / min(height, width)
    return min(rule.size / min(height, width), rule.max_size / max(height, width))


def resize_factors(rule: ResizeRule, height: int, width: int) -> tuple[float, float]:
    """What y and x on the resized image are multiplied by to come to the image.

    Each axis has its own, since rounding to whole pixels changes the two differently; by caffe that before rounding
    holds for both, by skimage that of the width.
    """
    new_height, new_width = resized_shape(rule, height, width)
    if rule.by == "caffe" and rule.mode == "shortest":
        return (1 / resize_scale(rule, height, width),) * 2
    return (width / new_width if rule.by == "skimage" else height / new_height), width / new_width


def resized_extent(rule: ResizeRule, height: int, width: int) -> tuple[float, float]:
    """Where an image of this height and width ends on the resized one, by its factors: within half a pixel of it."""
    if rule.by not in ("caffe", "skimage"):
        return resized_shape(rule, height, width)
    down, across = resize_factors(rule, height, width)
    return height / down, width / across


def interpolation_steps(rule: ResizeRule, height: int, width: int) -> tuple[float, float]:
    """Pixels of the image for one of the resized image: OpenCV's are those of the factor that it is given."""
    if rule.by == "caffe":
        return resize_factors(rule, height, width)
    new_height, new_width = resized_shape(rule, height, width)
    return height / new_height, width / new_width
