"""How verbs that find objects are told to look at a picture more than once."""

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Literal

from twostage.options import option

if TYPE_CHECKING:
    from twostage.inference.test_time_augmentation import TestTimeAugmentation


@dataclass(frozen=True)
class ViewOptions:
    """Mirrored, at other sizes, in tiles: slower, and often better."""

    _: KW_ONLY
    flip: bool = option(False, "Look at each picture mirrored as well.", group="Views")
    scales: tuple[float, ...] = option(
        (1.0,), "Look at each picture at these factors of its size.", group="Views", low=0.1, high=10
    )
    tile: int | None = option(
        None,
        "Look at windows of so many pixels as well: for small objects in large pictures.",
        group="Views",
        low=32,
    )
    overlap: float = option(0.25, "Of a tile's side, shared with the next one.", group="Views", low=0, high=0.89)
    fuse: Literal["nms", "wbf"] = option(
        "nms",
        "Of boxes of one object keep the best, or their weighted mean (weighted boxes fusion).",
        group="Views",
    )

    @property
    def views(self) -> "TestTimeAugmentation":
        """The same for the library."""
        from twostage.inference.test_time_augmentation import TestTimeAugmentation

        return TestTimeAugmentation(self.flip, self.scales, self.tile, self.overlap, self.fuse)
