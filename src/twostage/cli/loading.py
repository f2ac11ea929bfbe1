"""The detector a verb asks for."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from twostage.detector import Detector


@runtime_checkable
class Loading(Protocol):
    """What the options of a verb that runs a detector have in common."""

    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def max_size(self) -> int | None: ...
    @property
    def model_fields(self) -> dict[str, Any]: ...
    @property
    def offline(self) -> bool: ...


@contextmanager
def collecting_later() -> Iterator[None]:
    """Within it Python looks for no cycles among objects.

    Importing torch makes very many, which all stay: looking through them takes an eighth of that time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def load_detector(weights: str, options: Loading, *, device: str | None = None) -> "Detector":
    """The detector of a weights file, for images of another size where one is given. Imports torch.

    `device` takes the place of that of the options.
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
