"""Options of the verbs that predict: the detector, the detections kept, test-time augmentation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from twostage.common_options import MAX_DET, DetectionOptions, DetectorOptions
from twostage.options import option

if TYPE_CHECKING:
    from twostage.inference.test_time_augmentation import TestTimeAugmentation

_TTA = "Test-time augmentation"


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(DetectorOptions, DetectionOptions):
    """How a detector predicts. Test-time augmentation merges the detections of several views of each image."""

    max_det: int = option(100, MAX_DET, group="Detections", low=1)
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
