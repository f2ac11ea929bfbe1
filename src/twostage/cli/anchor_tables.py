"""The text of `twostage data stats` about anchors and the image size."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twostage.cli.table import table

_CLASSES = 12  # more are too many to read: those that anchors reach worst are shown


def anchor_lines(report: Mapping[str, Any], command: str) -> Iterator[str]:
    """The tables of `inspection.data_report.anchor_report`; `command` trains the model with its present anchors."""
    size = f"--size {report['size']} --max-size {report['max_size']}"
    yield f"Anchors of {report['model']}, split {report['split']}, {size}"
    if not report["objects"]:
        yield "No objects to compare anchors with."
        return
    yield "Share of the objects that an anchor overlaps with an IoU of 0.5 or more, and of 0.7 or more. Small, medium"
    yield "and large are COCO's sizes on the original image. Crowd and difficult objects are left out."
    yield ""
    yield from _reach(report)
    yield ""
    yield "The anchors of the zoo, each at the image size of its models:"
    yield ""
    yield from _zoo(report["zoo"])
    yield ""
    yield from _proposal(report, command)


def _reach(report: Mapping[str, Any]) -> Iterator[str]:
    classes = {name: row for name, row in report["classes"].items() if row["objects"]}
    shown = sorted(classes, key=lambda name: -classes[name]["objects"])
    if len(shown) > _CLASSES:
        shown = sorted(shown, key=lambda name: (classes[name]["iou50"], classes[name]["iou70"]))[:_CLASSES]
    parts = ("small", "medium", "large")
    rows = [
        (
            name,
            f"{row['objects']}",
            *(_percent(cell[key]) for key in ("iou50", "iou70") for cell in (row, *(row[part] for part in parts))),
        )
        for name, row in (("all objects", report), *((name, classes[name]) for name in shown))
    ]
    yield from table(("", "objects", "IoU 0.5", *parts, "IoU 0.7", *parts), rows)
    if len(classes) > len(shown):
        yield f"The {len(shown)} classes of {len(classes)} that the anchors reach worst; --json has all."


def _zoo(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    cells = []
    for row in rows:
        first, *others = row["models"]
        sides = sorted({side for level in row["anchor_sizes"] for side in level})
        cells.append(
            (
                first + (f" and {len(others)} more" if others else ""),
                f"{row['size']}",
                f"{sides[0]:.0f} to {sides[-1]:.0f} px",
                _levels(row["strides"]),
                _percent(row["iou50"]),
                _percent(row["iou70"]),
            )
        )
    yield from table(("", "--size", "anchors", "strides", "IoU 0.5", "IoU 0.7"), cells)


def _levels(strides: Sequence[int]) -> str:
    return f"{strides[0]}" if len(set(strides)) == 1 else f"{strides[0]} to {strides[-1]}"


def _proposal(report: Mapping[str, Any], command: str) -> Iterator[str]:
    proposal, model = report["proposal"], report["model"]
    if proposal is None and report["objects"] < report["objects_needed"]:
        yield f"Other anchors are not proposed: {report['objects_needed']} objects are needed for that."
        return
    method = "Clusters of the objects' sizes and ratios (k-means, distance 1 - IoU: YOLOv2, section 2)"
    if proposal is None:
        yield method
        yield f"reach no more objects than the anchors of {model}: keep these."
        return
    yield f"{method} as anchors:"
    yield ""
    named = (("present", report), ("proposed", proposal))
    yield from table(
        ("", "IoU 0.5", "IoU 0.7"), [(name, _percent(row["iou50"]), _percent(row["iou70"])) for name, row in named]
    )
    yield ""
    if proposal["loses"]:
        yield "They reach fewer at IoU 0.5 of:"
        for name, (now, then) in list(proposal["loses"].items())[:_CLASSES]:
            yield f"  {name}, {_percent(then)} instead of {_percent(now)}"
        yield ""
    yield f"{command} {proposal['flags']}"


def size_lines(rows: Sequence[Mapping[str, Any]], model: str) -> Iterator[str]:
    """The table of `inspection.data_report.image_size_report`."""
    reach = any(row["iou50"] >= 0 for row in rows)
    yield "What the image size costs: the median side of the objects on the resized images, the share of objects with"
    reached = ", that which the anchors reach" if reach else ""
    yield f"a side below 8 and 16 px{reached}, and the pixels per image ({model}: 1)."
    yield ""
    cells = [
        (
            f"{row['size']}{' (now)' if row['now'] else ''}",
            f"{row['median_side']:.4g} px",
            _percent(row["below_8"]),
            _percent(row["below_16"]),
            *((_percent(row["iou50"]), _percent(row["iou70"])) if reach else ()),
            f"{row['pixels']:.2f}",
        )
        for row in rows
    ]
    shares = ("IoU 0.5", "IoU 0.7") if reach else ()
    header = ("--size", "median side", "below 8 px", "below 16 px", *shares, "pixels")
    yield from table(header, cells)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0 else "-"
