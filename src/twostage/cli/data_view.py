"""`twostage data view`: a page with the images of a data set and their boxes."""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twostage.cli.page import figure, tile, write_page
from twostage.cli.verb import Outcome, verb
from twostage.common_options import DataOptions
from twostage.errors import UsageError, nearest
from twostage.folders import require_new_file
from twostage.options import option

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset

_LONGEST = 960  # pixels of an image on the page


@dataclass(frozen=True, kw_only=True)
class ViewOptions(DataOptions):
    split: str | None = option(None, "Split to show (default: train, else trainval, else the first).", group="Data")
    order: Literal["spread", "smallest", "crowded"] = option(
        "spread", "Images evenly over the split, with the smallest objects, or with the most.", group="Data"
    )
    only: str | None = option(None, "Show only images with an object of this class.", group="Data")
    most: int = option(48, "Images on the page.", group="Output", low=1)
    out: Path = option(Path("view.html"), "The page: a new HTML file.", group="Output")


@verb(ViewOptions)
def view(options: ViewOptions) -> Outcome:
    """Write one HTML page with the images of a data set and their boxes; it opens in any browser without a server."""
    from twostage.data.layout import Options
    from twostage.data.recognise import default_splits, find_layout, opener

    require_new_file(options.out, "--out")
    layout = find_layout(options.data)
    split = options.split or default_splits(layout)[0] or layout.splits[0]
    dataset = opener(layout, Options(options.images, options.voc_offset, "skip", boxes=options.boxes))(split)
    chosen = _chosen(dataset, options)
    counts = Counter(dataset.names[label] for label in dataset.labels)
    write_page(
        options.out,
        "data_view_page.html",
        {
            "title": f"{options.data.resolve().name}, {split}",
            "lead": f"{layout}. {len(chosen)} of the {len(dataset)} images of the split {split}.",
        },
        tiles=[
            tile(len(dataset), "images", first=True),
            tile(len(dataset.labels), "objects"),
            *(tile(count, name) for name, count in counts.most_common(8)),
        ],
        images=_figures(dataset, chosen),
    )
    print(f"{len(chosen)} of {len(dataset)} images of the split {split}.\nOpen {options.out} in a browser.")
    shown = [dataset.file_name(index) for index in chosen]
    return Outcome({"out": options.out, "split": split, "images": len(dataset), "shown": shown})


def _chosen(dataset: "Dataset", options: ViewOptions) -> list[int]:
    import numpy as np

    from twostage.data.stats import most_crowded, smallest

    order = {"smallest": smallest, "crowded": most_crowded}.get(options.order)
    candidates = np.arange(len(dataset)) if order is None else order(dataset, len(dataset))
    if options.only is not None:
        if options.only not in dataset.names:
            raise UsageError(f"--only: no class {options.only!r}. {nearest(options.only, dataset.names)}")
        label = dataset.names.index(options.only)
        candidates = np.array([i for i in candidates if label in dataset.objects(int(i)).labels], dtype=np.int64)
    if order is None and len(candidates) > options.most:
        candidates = candidates[np.linspace(0, len(candidates) - 1, options.most).round().astype(int)]
    return [int(index) for index in candidates[: options.most]]


def _figures(dataset: "Dataset", chosen: list[int]) -> Iterator[str]:
    from twostage.drawing import draw_boxes

    for index in chosen:
        objects = dataset.objects(index)
        labels = [dataset.names[label] for label in objects.labels]
        masks = dataset.masks_of(index) or None
        image = draw_boxes(
            dataset.image(index), objects.boxes, labels, class_ids=objects.labels, masks=masks, min_side=384
        )
        image.thumbnail((_LONGEST, _LONGEST))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=88)
        height, width = dataset.sizes[index].tolist()
        counts = ", ".join(f"{count} {name}" for name, count in Counter(labels).most_common()) or "no objects"
        yield figure(content.getvalue(), "jpeg", dataset.file_name(index), f"{width} x {height}: {counts}")
