"""All metrics of a split in one report: COCO's and VOC's, of boxes and masks, with definitions and settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from twostage.atomic import write_json, write_text
from twostage.data.dataset import Dataset
from twostage.errors import DataError, ThresholdError, UsageError, nearest
from twostage.evaluation.coco import COCO_IOUS, MAX_DETECTIONS, CocoScores, coco_scores
from twostage.evaluation.confusion import Confusion, confusion_matrix
from twostage.evaluation.curves import Curves, class_curves
from twostage.evaluation.results import Results
from twostage.evaluation.voc import VocScores, voc_scores

VOC_IOU = 0.5

DEFINITIONS = {
    "AP": "COCO: mean over IoU 0.50:0.05:0.95 and 101 recall levels, at most 100 detections per image and class",
    "AP50, AP75, AP90": "the same at one IoU",
    "APs, APm, APl": "the same for objects up to 32 x 32, up to 96 x 96, and from 96 x 96 pixels of area",
    "AR1, AR10, AR100": "COCO: recall, mean over the same IoUs, with that many detections per image and class",
    "voc07": "VOC2007: 11-point AP at IoU 0.5, inclusive pixels, difficult objects ignored",
    "voc12": "VOC2010 and later: AP of all points at IoU 0.5, inclusive pixels, difficult objects ignored",
}


@dataclass(frozen=True, eq=False)
class Scores:
    """The metrics of all classes together, and by class name; in 0..1, -1 if undefined."""

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class Report:
    """The result of `evaluate`. `segm` is None unless masks were scored, `curves` None without COCO's metrics."""

    scores: Scores
    segm: Scores | None
    settings: dict[str, Any]
    dataset: Dataset
    confusion: Confusion
    curves: Curves | None

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics of all classes together; those of masks as `segm_AP` and so on."""
        segm = {} if self.segm is None else {f"segm_{name}": value for name, value in self.segm.metrics.items()}
        return self.scores.metrics | segm

    def to_dict(self) -> dict[str, Any]:
        """A dictionary {"metrics", "per_class", "settings"}, with masks the same keys under "segm"."""
        boxes = {**vars(self.scores), "settings": self.settings}
        return boxes if self.segm is None else {**boxes, "segm": {**vars(self.segm), "settings": self.settings}}

    def require(self, least: Mapping[str, float]) -> None:
        """Raises ThresholdError if a metric is below its threshold or undefined; UsageError for an unknown metric."""
        failed = []
        for name, value in least.items():
            if name.startswith("segm_") and self.segm is None:
                raise UsageError(f"{name}: no masks were scored; the data or the detector has none.")
            if name not in self.metrics:
                raise UsageError(f"No metric {name!r}. {nearest(name, self.metrics)}")
            if self.metrics[name] < value:
                failed.append(f"{name} is {self.metrics[name]:.4f}, below {value:g}")
        if failed:
            raise ThresholdError("; ".join(failed) + ".")

    def table(self) -> str:
        """A text table: the metrics per class, their definitions, and the settings they depend on."""
        s = self.settings
        left_out = "".join(f", {s[kind]} {kind}" for kind in ("crowd", "difficult") if s[kind])
        data = f"{s['data']}, split {s['split']} ({s['layout']}): {s['images']} images, {s['objects']} objects"
        computed = f" in {s['precision']}" if s["precision"] else ""
        lines = [f"{data}{left_out}; {s['detections']} detections{computed}", ""]
        for title, scores in (("boxes", self.scores), ("masks", self.segm)):
            if scores is not None:
                lines += [*_class_lines(title, scores, s["objects_per_class"]), ""]
        names = set(self.scores.metrics)
        shown = {key: text for key, text in s["definitions"].items() if names & set(key.split(", "))}
        if s["images_above"] and "AP" in shown:
            most = s["max_detections"]
            lines.append(
                f"{s['images_above']} images hold more than {most} objects of one class, and only {most} detections "
                "count: use a larger --max-det\n"
            )
        shown |= {"score": _floor(s), "-": "undefined: no such object"}
        width = max(map(len, shown))
        return "\n".join([*lines, *(f"{key:{width}}  {text}" for key, text in shown.items())])

    def save(self, folder: Path, results: Results) -> None:
        """Write report.json, report.txt, the plots and, as results.json, the detections scored, in COCO's format."""
        write_json(folder / "report.json", self.to_dict())
        write_text(folder / "report.txt", self.table() + "\n")
        write_json(folder / "results.json", results.to_coco(self.dataset))
        self.write_plots(folder)

    def write_plots(self, folder: str | Path) -> list[Path]:
        """Write pr.png (with COCO's metrics), confusion.png and labels.png; returns their paths."""
        from twostage.evaluation.plots import plot_confusion, plot_curves, plot_labels, save_figure

        figures = {"confusion.png": plot_confusion(self.confusion), "labels.png": plot_labels(self.dataset)}
        if self.curves is not None:
            figures["pr.png"] = plot_curves(self.curves)
        for name, figure in figures.items():
            save_figure(figure, Path(folder) / name)
        return [Path(folder) / name for name in figures]


def evaluate(
    dataset: Dataset,
    results: Results,
    *,
    metric: str = "all",
    masks: bool | None = None,
    score_floor: float | None = None,
    conf: float = 0.5,
    precision: str | None = None,
    max_detections: int | None = None,
) -> Report:
    """Score the detections of a split.

    `masks` scores masks as well: by default if both the data set and the results have them. `score_floor` is the
    confidence below which the detector dropped detections, `precision` the detector's, None if unknown; they are only
    reported. `conf` is the confidence of the confusion matrix. With more than COCO's 100 `max_detections` per image and
    class, AP counts so many. Raises UsageError for an unknown metric, DataError for
    missing masks.
    """
    require_metric(metric)
    _check_range("image", results.images, len(dataset))
    _check_range("class", results.class_ids, len(dataset.names))
    both = dataset.masks is not None and results.masks is not None
    if masks and not both:
        raise DataError(
            f"No masks in {'the results' if dataset.masks is not None else dataset.root}: give masks=False."
        )
    limits: tuple[int, ...] = MAX_DETECTIONS
    if max_detections is not None and max_detections > limits[-1]:
        limits = (*limits, max_detections)
    coco = coco_scores(dataset, results, max_detections=limits) if metric in ("all", "coco") else None
    boxes = _scores(dataset, results, coco, metric, masks=False)
    segm = None
    if both if masks is None else masks:
        of_masks = coco_scores(dataset, results, masks=True, max_detections=limits) if coco is not None else None
        segm = _scores(dataset, results, of_masks, metric, masks=True)
    return Report(
        scores=boxes,
        segm=segm,
        settings={
            **_settings(dataset, results, metric, score_floor, conf, precision),
            "max_detections": limits[-1],
            "images_above": _images_above(dataset, limits[-1]),
            "definitions": {
                name: text.replace("at most 100", f"at most {limits[-1]}") for name, text in DEFINITIONS.items()
            },
        },
        dataset=dataset,
        confusion=confusion_matrix(dataset, results, conf=conf),
        curves=None if coco is None else class_curves(dataset, results, coco),
    )


def require_metric(metric: str) -> None:
    """Raises UsageError for an unknown metric."""
    known = ("all", "coco", "voc07", "voc12")
    if metric not in known:
        raise UsageError(f"No metric {metric!r}. {nearest(metric, known)}")


def _images_above(dataset: Dataset, limit: int) -> int:
    """The images that hold more objects of one class than detections count."""
    counted = ~dataset.crowd
    pairs = np.stack([dataset.image_indices[counted], dataset.labels[counted]], axis=1)
    which, counts = np.unique(pairs, axis=0, return_counts=True)
    return len(np.unique(which[counts > limit, 0]))


def _check_range(kind: str, ids: Int64[np.ndarray, " n"], count: int) -> None:
    outside = ids[(ids < 0) | (ids >= count)]
    if len(outside):
        raise DataError(f"The results name {kind} {outside[0]}; the data set has {count}, counted from 0.")


def _scores(dataset: Dataset, results: Results, coco: CocoScores | None, metric: str, *, masks: bool) -> Scores:
    parts: list[CocoScores | VocScores] = [] if coco is None else [coco]
    if metric != "coco":
        parts.append(voc_scores(dataset, results, iou=VOC_IOU, masks=masks))
    hidden = {"voc07": {"voc12"}, "voc12": {"voc07"}}.get(metric, set())

    def rows(class_id: int | None) -> dict[str, float]:
        return {k: v for part in parts for k, v in part.summary(class_id).items() if k not in hidden}

    return Scores(rows(None), {name: rows(k) for k, name in enumerate(dataset.names)})


def _settings(
    dataset: Dataset, results: Results, metric: str, score_floor: float | None, conf: float, precision: str | None
) -> dict[str, Any]:
    lowest = float(results.scores.min()) if len(results) else 0.0
    objects = np.bincount(dataset.labels, minlength=len(dataset.names)).tolist()
    return {
        "metric": metric,
        "data": str(dataset.root),
        "layout": dataset.layout,
        "split": dataset.split,
        "images": len(dataset),
        "objects": len(dataset.labels),
        "objects_per_class": dict(zip(dataset.names, objects, strict=True)),
        "crowd": int(dataset.crowd.sum()),
        "difficult": int(dataset.difficult.sum()),
        "detections": len(results),
        "precision": precision,
        "score_floor": score_floor,
        "lowest_score": lowest,
        "ious": [round(iou, 2) for iou in COCO_IOUS],
        "voc_iou": VOC_IOU,
        "confusion_conf": conf,
    }


_COLUMNS = ("AP", "AP50", "AP75", "AP90", "APs", "APm", "APl", "AR100", "voc07", "voc12")
_REST = ("AR1", "AR10", "ARs", "ARm", "ARl")


def _floor(settings: Mapping[str, Any]) -> str:
    if settings["score_floor"] is None:
        return f"the lowest of the file is {settings['lowest_score']:.4g}; what was dropped before it is not known"
    return f"detections below {settings['score_floor']:.4g} were dropped before"


def _class_lines(title: str, scores: Scores, objects: Mapping[str, int]) -> list[str]:
    columns = [c for c in _COLUMNS if c in scores.metrics]
    rows = {"all": (scores.metrics, sum(objects.values()))} if len(objects) != 1 else {}
    rows |= {name: (values, objects[name]) for name, values in scores.per_class.items() if objects[name]}
    width = max(len(title), *map(len, rows)) if rows else len(title)
    lines = [f"{title:{width}}" + "".join(f"{c:>7}" for c in columns) + f"{'objects':>9}"]
    for name, (values, count) in rows.items():
        lines.append(f"{name:{width}}" + "".join(f"{_cell(values[c]):>7}" for c in columns) + f"{count:>9}")
    rest = [c for c in _REST if c in scores.metrics]
    if rest:
        lines.append(f"{'':{width}}  " + "  ".join(f"{c} {_cell(scores.metrics[c])}" for c in rest))
    absent = [name for name, count in objects.items() if not count]
    return [*lines, f"no objects of: {', '.join(absent)}"] if absent else lines


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"
