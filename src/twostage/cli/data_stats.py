"""`twostage data stats`: statistics of a data set, and its hardest images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.verb import Outcome, verb
from twostage.common_options import DataOptions, ResizeOptions
from twostage.folders import whole_folder
from twostage.options import option

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.data.stats import Stats

_SHOWN = 8
_COLUMNS = ("", "min", "5 %", "25 %", "median", "75 %", "95 %", "max")


@dataclass(frozen=True, kw_only=True)
class StatsOptions(DataOptions, ResizeOptions):
    out: Path | None = option(
        None, "New folder for numbers, plots, and the images with the smallest and the most objects.", group="Output"
    )


@verb(StatsOptions)
def stats(options: StatsOptions) -> Outcome:
    """Print image sizes, classes, objects per image and the coverage by common anchors, for all splits."""
    from twostage.data.layout import Options
    from twostage.data.recognise import find_layout, opener
    from twostage.data.resize import Resize
    from twostage.data.stats import stats

    layout = find_layout(options.data)
    open_split = opener(layout, Options(options.images, options.voc_offset, "skip", boxes=options.boxes))
    datasets = [open_split(split) for split in layout.splits]
    all_stats = [stats(dataset, Resize(size=options.size, max_size=options.max_size)) for dataset in datasets]
    print(layout)
    for one in all_stats:
        print("\n".join(_lines(one, options)))
    left_out = sum(fault.severity == "error" for dataset in datasets for fault in dataset.faults)
    if left_out:
        print(f"\n{left_out} faulty files or records are not counted: twostage data check {options.data}")
    result = {"path": options.data, "splits": {one.split: one.to_dict() for one in all_stats}}
    if options.out:
        with whole_folder(options.out, "--out") as folder:
            _save(folder, datasets, result)
        print(f"\nSaved to {options.out}")
    return Outcome(result)


def _lines(stats: "Stats", options: StatsOptions) -> Iterator[str]:
    yield ""
    others = [f"{count} {what}" for count, what in ((stats.crowd, "crowd"), (stats.difficult, "difficult")) if count]
    note = f" ({', '.join(others)})" if others else ""
    images = f"{stats.images} images, {stats.without_objects} without objects"
    yield f"{stats.split}: {images}; {stats.objects} objects{note}"
    rows = [
        ("image width", stats.widths),
        ("image height", stats.heights),
        ("objects per image", stats.objects_an_image),
        ("object side, px", stats.sides),
        (f"at --size {options.size}", stats.resized_sides),
        ("width / height", stats.aspects),
    ]
    yield from _table(_COLUMNS, [(name, *(f"{v:.4g}" for v in values)) for name, values in rows if values])
    yield ""
    classes = sorted(stats.classes.items(), key=lambda item: -item[1]["objects"])
    shown = [
        (name, f"{row['objects']:.0f}", f"{row['images']:.0f}", f"{row['median_side']:.4g}" if row["objects"] else "-")
        for name, row in classes
    ]
    yield from _table(("class", "objects", "images", "median side"), shown)
    if stats.small_medium_large:
        small, medium, large = (f"{100 * share:.0f} %" for share in stats.small_medium_large)
        yield ""
        yield f"COCO's sizes: small (below 32 x 32) {small}, medium {medium}, large (from 96 x 96) {large}"
        yield f"{100 * stats.anchor_reach:.1f} % of the objects, resized, match an anchor of 32 to 512 px"
        if stats.best_reach > stats.anchor_reach + 0.01:
            sizes = [[size] for size in stats.best_anchors]
            yield f"{100 * stats.best_reach:.1f} % with --set model.anchor_sizes='{sizes}' (five pyramid levels)"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _save(folder: Path, datasets: "Sequence[Dataset]", result: Any) -> None:
    from twostage.atomic import write_json
    from twostage.data.stats import most_crowded, smallest
    from twostage.drawing import draw_boxes, save_picture, tile
    from twostage.evaluation.plots import plot_labels, save_figure

    write_json(folder / "stats.json", result)
    for dataset in datasets:
        save_figure(plot_labels(dataset), folder / f"labels-{dataset.split}.png")
        for name, chosen in (("smallest", smallest(dataset, _SHOWN)), ("crowded", most_crowded(dataset, _SHOWN))):
            drawn = []
            for index in chosen.tolist():
                objects = dataset.objects(index)
                labels = [dataset.names[label] for label in objects.labels]
                drawn.append(
                    draw_boxes(dataset.image(index), objects.boxes, labels, class_ids=objects.labels, min_side=384)
                )
            if drawn:
                titles = [dataset.file_name(index) for index in chosen.tolist()]
                save_picture(tile(drawn, titles=titles), folder / f"{name}-{dataset.split}.jpg")
