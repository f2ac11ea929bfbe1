"""The detector of a verb: how it is loaded, and how it predicts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twostage.common_options import MAX_DET, DetectionOptions, DetectorOptions
from twostage.options import option

if TYPE_CHECKING:
    from twostage.detector import Detector
    from twostage.inference.test_time_augmentation import TestTimeAugmentation

MOST = 100  # detections of an image
_TTA = "Test-time augmentation"


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(DetectorOptions, DetectionOptions):
    """How a detector predicts. Test-time augmentation merges the detections of several views of each image."""

    max_det: int = option(MOST, MAX_DET, group="Detections", low=1)
    flip: bool = option(False, "Add the mirrored image.", group=_TTA)
    scales: tuple[float, ...] = option((1.0,), "Scale factors of the image.", group=_TTA, low=0.1, high=10)
    tile: int | None = option(
        None,
        "Add tiles of this side in pixels, for small objects in large images; --max-det then applies per tile.",
        group=_TTA,
        low=32,
    )
    overlap: float = option(
        0.25, "Overlap of neighbouring tiles, as a fraction of their side.", group=_TTA, low=0, high=0.89
    )
    fuse: Literal["nms", "wbf"] = option(
        "nms", "Merge the boxes of an object by NMS, or by weighted boxes fusion.", group=_TTA
    )
    batch: int = option(1, "Images per forward pass, at most; results differ by rounding only.", group="Run", low=1)

    @property
    def views(self) -> "TestTimeAugmentation":
        """The test-time augmentation, for the library."""
        from twostage.inference.test_time_augmentation import TestTimeAugmentation

        return TestTimeAugmentation(self.flip, self.scales, self.tile, self.overlap, self.fuse)


@contextmanager
def collecting_later() -> Iterator[None]:
    """Garbage collection is off within this context.

    Importing torch creates many objects, none of which is freed: collection takes an eighth of the import's time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def load_detector(
    weights: str, options: DetectorOptions, *, device: str | None = None, precision: str | None = None
) -> "Detector":
    """The detector of a weights file or name, with the options' fields and image size. Imports torch.

    `device` and `precision` override those of the options.
    """
    with collecting_later():
        from twostage.detector import Detector
        from twostage.models.zoo import require_known
        from twostage.weights.file import is_exported

    require_known(options.model_fields)  # `device` is an argument of `load`, and no field
    if is_exported(Path(weights)):  # runs on the CPU; `auto` of the options, not the device of this process
        device, precision = options.device, options.precision
    return Detector.load(
        weights,
        device=device or options.device,
        precision=precision or options.precision,
        choose_forms=options.choose_forms,
        offline=options.offline,
        **options.given_fields,
    )


def most_of(detector: "Detector", wanted: int | None) -> int | None:
    """The number of detections wanted; the default is no more than an exported file has places."""
    own = detector.config.postprocess.max_det
    return min(MOST, own) if detector.is_exported and wanted == MOST else wanted
