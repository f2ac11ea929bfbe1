"""Plots: precision and recall, confusion, data set statistics, training curves, stage times.

Figures are made without pyplot, so that no global state changes and any thread can draw. Colours are those of
`twostage.drawing`, distinguishable with any colour vision; lines also differ by dashes.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float64

from twostage import atomic
from twostage.data.dataset import Dataset
from twostage.drawing import colour_of
from twostage.evaluation.confusion import Confusion
from twostage.evaluation.curves import Curves
from twostage.evaluation.recall import ProposalRecall
from twostage.fonts import font_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GRID = "#333333", "#dddddd"
_DASHES = ("-", "--", ":", "-.")
# More classes than this are drawn faintly and without names.
_NAMED = 12


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a PNG of 150 dots per inch, atomically, in a font that has the letters of its texts."""
    _use_letters(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once, in plain words, by `fonts`
        figure.savefig(buffer, format="png", dpi=150)
    atomic.write_bytes(Path(path), buffer.getvalue())


def _use_letters(figure: "Figure") -> None:
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.text import Text

    texts = [one for one in figure.findobj(Text) if isinstance(one, Text)]
    file = font_file("".join(one.get_text() for one in texts))
    if file is None or file == font_file(""):
        return
    fontManager.addfont(file)
    family = ["DejaVu Sans", FontProperties(fname=file).get_name()]
    for one in texts:
        one.set_fontfamily(family)


def plot_curves(curves: Curves) -> "Figure":
    """Precision over recall per class with its AP, and the mean over classes; beside it F1 over confidence."""
    figure = _figure(10.0, 4.6)
    left, right = figure.subplots(1, 2)
    _style(left, "recall", "precision", f"Precision and recall at IoU {curves.iou:g}; beside each class its AP")
    best, f1 = curves.best_confidence()
    by_confidence = f"F1 by confidence; the mean over classes is best at {best:.2f}"
    _style(right, "confidence threshold", "F1", by_confidence if f1 >= 0 else "")
    ap = curves.average_precision()
    shown = np.flatnonzero(curves.defined)
    few = len(shown) <= _NAMED
    for place, k in enumerate(shown[np.argsort(-ap[shown], kind="stable")]):
        look: dict[str, Any] = (
            {"color": _hex(int(k)), "linestyle": _DASHES[k // 7 % len(_DASHES)], "lw": 1.8}
            if few
            else {"color": "#999999", "lw": 0.6, "alpha": 0.6}
        )
        label = f"{curves.names[k]}  {ap[k]:.3f}" if few else None
        left.plot(curves.recall, curves.precision[k], label=label, zorder=3 + place / 100, **look)
        right.plot(curves.confidence, curves.f1[k], **look)
    if len(shown) > 1:
        mean = curves.precision[shown].mean(axis=0)
        left.plot(curves.recall, mean, color=_INK, lw=2.6, label=f"all classes  {ap[shown].mean():.3f}", zorder=5)
        right.plot(curves.confidence, curves.f1[shown].mean(axis=0), color=_INK, lw=2.6, zorder=5)
    if f1 >= 0:
        right.axvline(best, color=_INK, lw=1, ls=":")
    if len(shown):
        left.legend(loc="lower left", frameon=False, fontsize=8)
    else:
        left.text(0.5, 0.5, "no objects", ha="center", color=_INK)
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def plot_confusion(confusion: Confusion) -> "Figure":
    """One row per class with the detected classes of its objects; the last row has detections without an object."""
    names = [*confusion.names, "background"]
    k = len(names)
    side = min(16.0, max(4.5, 1.8 + 0.55 * k))
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    counts = confusion.counts
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.where(counts > 0, share, np.nan), cmap="Blues", vmin=0, vmax=1)
    size = 9 if k <= 12 else 6
    if k <= 30:
        for row, column in np.argwhere(counts > 0):
            value = share[row, column]
            text = f"{counts[row, column]}\n{value:.0%}" if k <= 12 else f"{counts[row, column]}"
            ink = "white" if value > 0.5 else _INK
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
    # A line separates the background, which is not a class.
    axes.axhline(k - 1.5, color=_INK, lw=1)
    axes.axvline(k - 1.5, color=_INK, lw=1)
    across, down = [*confusion.names, "missed"], [*confusion.names, "no object"]
    tick_size = 9 if k <= 20 else 6
    axes.set_xticks(
        range(k), across, rotation=45 if k > 4 else 0, ha="right" if k > 4 else "center", fontsize=tick_size
    )
    axes.set_yticks(range(k), down, fontsize=tick_size)
    axes.set_xlabel("predicted class", color=_INK)
    axes.set_ylabel("ground truth", color=_INK)
    axes.set_title(
        f"Confusion at IoU {confusion.iou:g}, confidence {confusion.conf:g}; percentages are of the row", **_TITLE
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def plot_labels(dataset: Dataset) -> "Figure":
    """Statistics of a data set: objects per class, objects per image, sizes and positions of objects."""
    figure = _figure(11.0, 7.2)
    (by_class, per_image), (sizes, places) = figure.subplots(2, 2)
    classes = len(dataset.names)
    counts = np.bincount(dataset.labels, minlength=classes)
    order = np.argsort(-counts, kind="stable")[:20]
    bars = by_class.barh(range(len(order)), counts[order], color=[_hex(int(k)) for k in order], height=0.75)
    by_class.bar_label(bars, fontsize=8 if len(order) <= 12 else 7, padding=3, color=_INK)
    by_class.set_yticks(range(len(order)), [dataset.names[k] for k in order], fontsize=8 if len(order) <= 12 else 7)
    by_class.set_ylim(max(len(order), 3) - 0.4, -0.6)
    by_class.set_xlim(0, max(counts.max(initial=0), 1) * 1.15)
    more = f" (20 most frequent of {classes} classes)" if classes > 20 else ""
    _style(by_class, "objects", "", f"{counts.sum()} objects{more}", grid="x")

    in_image = np.diff(dataset.offsets)
    bins = np.arange(-0.5, max(10, in_image.max(initial=0)) + 1.5, max(1, math.ceil(in_image.max(initial=0) / 40)))
    per_image.hist(in_image, bins=bins, color=_hex(6))
    empty = np.count_nonzero(in_image == 0)
    title = f"{len(in_image)} images, {empty} of them without objects"
    _style(per_image, "objects in an image", "images", title, grid="y")

    _plot_sizes(sizes, dataset)
    _plot_places(places, dataset)
    return figure


def plot_anchors(
    sides: Float64[np.ndarray, "b 2"],
    present: Float64[np.ndarray, "k 2"],
    proposed: Float64[np.ndarray, "j 2"] | None = None,
) -> "Figure":
    """Widths and heights of objects on resized images, and of the anchors they are compared with."""
    figure = _figure(5.6, 5.2)
    axes = figure.subplots()
    width, height = sides[:: max(1, len(sides) // 5000)].T
    axes.scatter(width, height, s=6, color=_hex(6), alpha=0.35, lw=0, label="objects")
    for sets, name, marker in ((present, "anchors", "s"), (proposed, "proposed anchors", "D")):
        if sets is not None:
            colour = _INK if marker == "s" else _hex(0)
            look: dict[str, Any] = {"s": 36, "marker": marker, "facecolors": "none", "edgecolors": colour, "lw": 1.4}
            axes.scatter(sets[:, 0], sets[:, 1], label=name, **look)
    axes.set(xscale="log", yscale="log", aspect="equal")
    _style(axes, "width on the resized image, pixels", "height, pixels", f"{len(sides)} objects and anchors")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_history(rows: Sequence[Mapping[str, Any]], *, x: str = "epoch") -> "Figure":
    """Losses, metrics and learning rate of a training over the column `x`; gaps are bridged, other columns omitted.

    A column is a loss when its name holds "loss", a metric when it is AP, AP50 or AP75 (of boxes or, behind `segm_`, of
    masks), a rate when it is "lr". Values may be strings, as from a CSV reader.
    """
    # Rows differ in their columns: the first rows of a training may have no validation.
    every = dict.fromkeys(name for row in rows for name in row)
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in every}
    panels = {
        "loss": [name for name in columns if "loss" in name],
        "metric": [name for name in columns if name.removeprefix("segm_") in ("AP", "AP50", "AP75")],
        "learning rate": [name for name in columns if name == "lr"],
    }
    panels = {title: names for title, names in panels.items() if names} or {"loss": []}
    figure = _figure(5.2 * len(panels), 4.2)
    steps = columns.get(x, np.arange(1, len(rows) + 1, dtype=float))
    for axes, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        kinds = list(dict.fromkeys(_kind(name) for name in names))
        for name in names:
            there = np.isfinite(columns[name])
            marker = "o" if there.sum() <= 25 else ""
            axes.plot(
                steps[there],
                columns[name][there],
                color=_hex(kinds.index(_kind(name))),
                linestyle="--" if name.startswith("val_") else "-",
                marker=marker,
                ms=3,
                lw=1.7,
                label=name,
            )
        _style(axes, x, title)
        if title == "metric":
            axes.set_ylim(0, 1)
        elif title == "loss":
            axes.set_ylim(bottom=0)
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
        if x in ("epoch", "step"):
            axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_stages(cases: Mapping[str, Mapping[str, Mapping[str, float]]]) -> "Figure":
    """One stacked bar per case of the stages' medians from `bench`, in milliseconds."""
    figure = _figure(9.0, 1.6 + 0.7 * len(cases))
    axes = figure.subplots()
    stages = list(dict.fromkeys(stage for taken in cases.values() for stage in taken))
    left = np.zeros(len(cases))
    for k, stage in enumerate(stages):
        width = np.array([taken.get(stage, {}).get("median", 0.0) for taken in cases.values()])
        axes.barh(list(cases), width, left=left, color=_hex(k), label=stage, height=0.6, edgecolor="white", lw=0.5)
        left += width
    for place, total in enumerate(left):
        axes.text(total, place, f" {total:.0f} ms", va="center", color=_INK, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    _style(axes, "milliseconds", "", "Where the time of a prediction goes", grid="x")
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return figure


def plot_recall(recalls: Mapping[str, ProposalRecall]) -> "Figure":
    """Recall over IoU at each number of proposals (Faster R-CNN, figure 4), then over their number at IoU 0.5.

    One line per source; all must have the same counts and thresholds.
    """
    first = next(iter(recalls.values()))
    panels = len(first.counts) + 1
    down = math.ceil(panels / 4)
    across = math.ceil(panels / down)
    figure = _figure(3.2 * across, 0.5 + 3.1 * down)
    grid = figure.subplots(down, across, sharey=True, squeeze=False).flat
    *by_iou, by_count = grid[:panels]
    for empty in grid[panels:]:
        empty.set_axis_off()
    for k, (name, recall) in enumerate(recalls.items()):
        look: dict[str, Any] = {"color": _hex(k), "linestyle": _DASHES[k % len(_DASHES)], "lw": 1.8, "label": name}
        for axes, count in zip(by_iou, recall.counts, strict=True):
            axes.plot(recall.ious, [recall.at(count, iou=iou) for iou in recall.ious], **look)
        by_count.plot(recall.counts, [recall.at(count, iou=0.5) for count in recall.counts], marker="o", ms=3, **look)
    for place, (axes, count) in enumerate(zip(by_iou, first.counts, strict=True)):
        _style(axes, "IoU", "" if place % across else "recall", f"{count} proposals")
    _style(by_count, "proposals per image", "", "Recall at IoU 0.5")
    by_count.set_xscale("log")
    by_count.set_xticks(first.counts, [str(count) for count in first.counts], fontsize=7)
    by_count.set_xticks([], minor=True)
    by_count.set_ylim(0, 1.02)
    figure.legend(*by_count.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    return figure


def plot_learning_curve(
    images: Sequence[int], ap: Sequence[float], expected: float, low: float, high: float
) -> "Figure":
    """AP over the number of training images, and, dashed, what is expected with twice as many as the last.

    The bar there goes from `low` to `high`.
    """
    figure = _figure(5.2, 4.2)
    axes = figure.subplots()
    twice = 2 * images[-1]
    axes.plot([images[-1], twice], [ap[-1], expected], color=_hex(0), marker="o", mfc="w", ms=4, ls="--", lw=1.7)
    axes.errorbar(twice, expected, [[expected - low], [high - expected]], color=_hex(0), capsize=4, lw=1.2, zorder=1)
    # On top: the last of the measured points is filled too.
    axes.plot(images, ap, color=_hex(0), marker="o", ms=4, lw=1.7)
    shown = [*images, twice]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(n) for n in shown])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    title = f"AP {ap[-1]:.3f}; with twice the images about {expected:.3f} ({low:.3f} to {high:.3f})"
    _style(axes, "images to learn from", "AP", title)
    return figure


def _plot_sizes(axes: "Axes", dataset: Dataset) -> None:
    side = np.sqrt((dataset.boxes[:, 2:] - dataset.boxes[:, :2]).clip(min=0).prod(axis=1))
    side = side[side > 0]
    low, high = (side.min(), side.max()) if len(side) else (1.0, 100.0)
    bins = np.geomspace(max(low * 0.95, 0.1), max(high * 1.05, low * 1.2), 40).tolist()
    frequent = np.argsort(-np.bincount(dataset.labels, minlength=len(dataset.names)), kind="stable")
    if len(frequent) <= 5:
        all_sides = np.sqrt((dataset.boxes[:, 2:] - dataset.boxes[:, :2]).clip(min=1e-9).prod(axis=1))
        parts = [all_sides[dataset.labels == k] for k in frequent]
        axes.hist(parts, bins=bins, stacked=True, color=[_hex(int(k)) for k in frequent])
    else:
        axes.hist(side, bins=bins, color=_hex(6))
    axes.set_xscale("log")
    axes.set_xlim(bins[0], bins[-1])
    for edge, name in ((32, "medium"), (96, "large")):
        if bins[0] < edge < bins[-1]:
            axes.axvline(edge, color=_INK, lw=1, ls=":")
            axes.text(edge, 1, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8, va="top", color=_INK)
    title = f"Sizes: median {np.median(side):.0f} pixels" if len(side) else "Sizes"
    _style(axes, "square root of box area, pixels", "objects", title, grid="y")
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if bins[0] <= t <= bins[-1]]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xticks([], minor=True)


def _plot_places(axes: "Axes", dataset: Dataset) -> None:
    sizes = np.repeat(dataset.sizes, np.diff(dataset.offsets), axis=0).astype(float)
    x = (dataset.boxes[:, 0] + dataset.boxes[:, 2]) / 2 / np.maximum(sizes[:, 1], 1)
    y = (dataset.boxes[:, 1] + dataset.boxes[:, 3]) / 2 / np.maximum(sizes[:, 0], 1)
    # About one object per cell or more, otherwise the plot shows only noise.
    cells, _, _ = np.histogram2d(y, x, bins=int(np.clip(np.sqrt(len(x)) / 2, 4, 24)), range=((0, 1), (0, 1)))
    axes.imshow(cells, cmap="Blues", extent=(0, 1, 1, 0), aspect="auto")
    title = "Where the centres of objects lie; darker is more"
    _style(axes, "x, share of the width", "y, share of the height", title, grid="")


_TITLE: dict[str, Any] = {"fontsize": 9, "loc": "left", "color": _INK}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _style(axes: "Axes", x: str, y: str, title: str = "", *, grid: Literal["both", "x", "y", ""] = "both") -> None:
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.set_title(title, **_TITLE)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(axis=grid, color=_GRID, lw=0.7)
        axes.set_axisbelow(True)


def _hex(k: int) -> str:
    """The colour of class k, darkened if it is too light on white."""
    rgb = np.array(colour_of(k))
    return "#{:02x}{:02x}{:02x}".format(*(rgb if rgb.mean() < 170 else rgb * 0.8).astype(int))


def _kind(column: str) -> str:
    """The name without its prefix, common to training and validation losses."""
    return column.removeprefix("train_").removeprefix("val_")


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
