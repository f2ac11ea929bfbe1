"""`twostage data stats`: statistics of a data set, and its hardest images."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.anchor_tables import anchor_lines, size_lines
from twostage.cli.table import table
from twostage.cli.verb import Outcome, verb
from twostage.common_options import DataOptions, TrainModelOptions
from twostage.folders import require_replaceable, whole_folder
from twostage.options import option
from twostage.shell import command

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.data.layout import Layout
    from twostage.data.resize import Resize
    from twostage.data.stats import Stats
    from twostage.models.config import DetectorConfig

_SHOWN = 8
_COLUMNS = ("", "min", "5 %", "25 %", "median", "75 %", "95 %", "max")


@dataclass(frozen=True, kw_only=True)
class StatsOptions(DataOptions, TrainModelOptions):
    model: str = option("faster_rcnn_lite0_fpn", "Model of the zoo: its anchors and its image size.", group="Model")
    train_split: str | None = option(
        None,
        "Split that anchors and image sizes are compared on (default: train, else trainval, else the first).",
        group="Data",
    )
    out: Path | None = option(
        None, "New folder for numbers, plots, and the images with the smallest and the most objects.", group="Output"
    )


@verb(StatsOptions)
def stats(options: StatsOptions) -> Outcome:
    """Print image sizes, classes and objects of all splits; of the training split, how many objects the anchors of a
    model reach, which anchors would reach more, and what the image size costs in small objects.
    """
    from twostage.data.layout import Options
    from twostage.data.recognise import find_layout, opener
    from twostage.data.stats import stats
    from twostage.models.configure import configure
    from twostage.models.zoo import named

    own = configure(named(options.model), options.given_fields)
    if options.out:
        require_replaceable(options.out, "--out")
    layout = find_layout(options.data)
    open_split = opener(layout, Options(options.images, options.voc_offset, "skip", boxes=options.boxes))
    train_split = options.train_split or _train_split(layout)
    datasets = {split: open_split(split) for split in dict.fromkeys((*layout.splits, train_split))}
    chosen = _with_suitable_size(options, own, datasets[train_split])
    config = configure(named(options.model), chosen.given_fields)
    all_stats = [stats(dataset, config.image.resizing) for dataset in datasets.values()]
    result = {"path": options.data, "splits": {one.split: one.to_dict() for one in all_stats}}
    result |= _of_model(datasets[train_split], options.model, config, own)
    print(layout)
    for one in all_stats:
        print("\n".join(_lines(one, config.image.resizing)))
    if chosen is not options:
        print(f"\nFor objects of these sizes `twostage train` chooses --size {chosen.size}, where there is time.")
    print("\n" + "\n".join(_model_lines(result, chosen)))
    left_out = sum(fault.severity == "error" for dataset in datasets.values() for fault in dataset.faults)
    if left_out:
        check = command("twostage", "data", "check", options.data)
        print(f"\n{left_out} faulty files or records are not counted: {check}")
    if options.out:
        with whole_folder(options.out, "--out") as folder:
            _save(folder, list(datasets.values()), result)
            _save_anchors(folder, datasets[train_split], config, result)
        print(f"\nSaved to {options.out}")
    return Outcome(result)


def _with_suitable_size(options: StatsOptions, config: "DetectorConfig", dataset: "Dataset") -> StatsOptions:
    """The options with the size that `twostage train` chooses for a small pretrained network."""
    from twostage.models.backbones.efficientnet_lite import EfficientNetLiteConfig
    from twostage.models.image import ImageConfig
    from twostage.training.image_size import suitable_size

    if not isinstance(config.backbone, EfficientNetLiteConfig) or not isinstance(config.image, ImageConfig):
        return options
    size = suitable_size(config, options.given_fields, dataset)
    return options if size in (None, config.image.size) else replace(options, size=size)


def _train_split(layout: "Layout") -> str:
    from twostage.data.recognise import default_splits

    return default_splits(layout)[0] or layout.splits[0]


def _of_model(dataset: "Dataset", model: str, config: "DetectorConfig", own: "DetectorConfig") -> dict[str, Any]:
    """The anchors and the image size of a model for a data set; None for what it does not have. `own` has the size of
    the model, to which others are compared.
    """
    from twostage.inspection.anchor_reach import has_anchors
    from twostage.inspection.data_report import anchor_report, image_size_report
    from twostage.models.config import StagewiseConfig

    if isinstance(config, StagewiseConfig) or isinstance(own, StagewiseConfig):
        return {"anchors": None, "image_sizes": None}
    anchors = anchor_report(dataset, model, config) if has_anchors(config) else None
    return {"anchors": anchors, "image_sizes": image_size_report(dataset, config, own.image.size)}


def _model_lines(result: Mapping[str, Any], options: StatsOptions) -> Iterator[str]:
    anchors, sizes, model = result["anchors"], result["image_sizes"], options.model
    if anchors is None:
        yield f"{model} has no anchors: its proposals come from elsewhere. `twostage data proposals` has their recall."
    else:
        yield from anchor_lines(anchors, _train_command(options))
    if sizes and sizes[0]["median_side"] >= 0:
        yield ""
        yield from size_lines(sizes, model)


def _train_command(options: StatsOptions) -> str:
    """`twostage train` with the options that were given; of two values of a field the last counts."""
    words = ["twostage", "train", str(options.data), "--model", options.model]
    for each in fields(options):
        value = getattr(options, each.name)
        if each.name not in ("data", "model", "model_fields", "out") and value != each.default:
            words += [f"--{each.name.replace('_', '-')}", str(value)]
    for name, value in options.model_fields.items():
        words += ["--set", f"model.{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return command(*words)


def _lines(stats: "Stats", resize: "Resize") -> Iterator[str]:
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
        *([] if resize.mode == "none" else [(f"at --size {resize.size}", stats.resized_sides)]),
        ("width / height", stats.aspects),
    ]
    yield from table(_COLUMNS, [(name, *(f"{v:.4g}" for v in values)) for name, values in rows if values])
    yield ""
    classes = sorted(stats.classes.items(), key=lambda item: -item[1]["objects"])
    shown = [
        (name, f"{row['objects']:.0f}", f"{row['images']:.0f}", f"{row['median_side']:.4g}" if row["objects"] else "-")
        for name, row in classes
    ]
    yield from table(("class", "objects", "images", "median side"), shown)
    if stats.small_medium_large:
        small, medium, large = (f"{100 * share:.0f} %" for share in stats.small_medium_large)
        yield ""
        yield f"COCO's sizes: small (below 32 x 32) {small}, medium {medium}, large (from 96 x 96) {large}"


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


def _save_anchors(folder: Path, dataset: "Dataset", config: "DetectorConfig", result: Any) -> None:
    from twostage.evaluation.plots import plot_anchors, save_figure
    from twostage.inspection.anchor_reach import anchor_sides, resized_boxes, used_objects
    from twostage.models.config import StagewiseConfig
    from twostage.models.configure import configure

    if isinstance(config, StagewiseConfig) or not result["anchors"] or not result["anchors"]["objects"]:
        return
    boxes = resized_boxes(dataset, config.image.resizing)[0][used_objects(dataset)]
    proposal = result["anchors"]["proposal"] or {}
    fields = {name: value for name, value in proposal.items() if name.startswith("anchor_")}
    proposed = anchor_sides(configure(config, fields)) if fields else None
    figure = plot_anchors(boxes[:, 2:] - boxes[:, :2], anchor_sides(config), proposed)
    save_figure(figure, folder / f"anchors-{dataset.split}.png")
