"""Loading the detector of a verb."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from twostage.common_options import DetectorOptions

if TYPE_CHECKING:
    from twostage.detector import Detector


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


def load_detector(weights: str, options: DetectorOptions, *, device: str | None = None) -> "Detector":
    """The detector of a weights file or name, with the options' fields and image size. Imports torch.

    `device` overrides that of the options.
    """
    with collecting_later():
        from twostage.detector import Detector
        from twostage.models.zoo import require_known

    require_known(options.model_fields)  # `device` is an argument of `load`, and no field
    sizes = {"size": options.size, "max_size": options.max_size}
    given = {name: value for name, value in sizes.items() if value is not None}
    return Detector.load(
        weights,
        device=device or options.device,
        precision=options.precision,
        offline=options.offline,
        **{**options.model_fields, **given},
    )
