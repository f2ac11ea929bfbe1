"""`twostage demo`: train a detector on generated scenes, and show its detections on a page.

The page is one HTML file with its images embedded, which needs neither a server nor the network.
"""

import html
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from twostage.cli.page import figure, write_page
from twostage.cli.verb import Outcome, verb
from twostage.common_options import OfflineOptions, RunOptions, WorkersOptions
from twostage.folders import new_folder, next_folder
from twostage.options import option
from twostage.shell import command
from twostage.training.options import TrainOptions

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.detections import Detections
    from twostage.detector import Detector

MODEL = "faster_rcnn_tiny_fpn"
# Lowest score of a detection that is drawn and counted.
CONFIDENT = 0.5
# IoU with a detection of its class from which an object counts as found.
FOUND_IOU = 0.5
# Images in training, 900 steps of 8, and the AP that they gave: `benchmarks/results/demo.md`.
ENOUGH, REACHED = 7200, 0.85


class Shown(NamedTuple):
    """An image on the page, and its caption."""

    path: Path
    title: str
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class DemoOptions(RunOptions, WorkersOptions, OfflineOptions):
    minutes: float = option(2.0, "Wall time of training.", above=0)
    hard: bool = option(False, "Harder scenes: more objects, 10 to 110 pixels in size, more of them occluded.")
    train_scenes: int = option(600, "Training scenes.", low=1)
    val_scenes: int = option(100, "Validation scenes.", low=1)
    out: Path | None = option(None, "New folder (default: the next free runs/demo-N).", group="Output")


@verb(DemoOptions)
def demo(options: DemoOptions) -> Outcome:
    """Generate scenes, train a small detector on them, and write a page with its detections in unseen scenes."""
    from twostage.data.recognise import open_dataset
    from twostage.data.scenes import write_scenes
    from twostage.detector import Detector
    from twostage.training import train
    from twostage.training.folder import read_options

    folder = new_folder(options.out, "--out") if options.out else next_folder(Path("runs"), "demo")
    print(f"Generating {options.train_scenes} training scenes and {options.val_scenes} validation scenes")
    scenes = write_scenes(
        folder / "scenes", train=options.train_scenes, val=options.val_scenes, seed=options.seed, hard=options.hard
    )
    print(f"Training {MODEL} for {options.minutes:g} minutes")
    trained = train(
        TrainOptions(
            scenes,
            model=MODEL,
            minutes=options.minutes,
            size=256 if options.hard else 192,
            out=folder / "train",
            workers=options.workers,
            seed=options.seed,
            device=options.device,
            quiet=options.quiet,
        )
    )
    # The last weights, not the best ones: those are chosen on the scenes that the page reports on.
    weights = Path(trained["out"]) / "weights" / "last.safetensors"
    detector = Detector.load(weights, device=options.device)
    unseen = open_dataset(scenes, split="val")
    evaluated = detector.evaluate(unseen)
    print(evaluated.table())
    report = evaluated.to_dict()
    images, seconds = _predict_scenes(detector, unseen, folder / "predictions")
    seen = trained["steps"] * (read_options(Path(trained["out"])).batch or 0)
    promised = not options.hard and options.train_scenes >= DemoOptions.train_scenes
    short = promised and seen < ENOUGH and report["metrics"]["AP"] < REACHED
    run = {
        "train_images": options.train_scenes,
        "val_images": options.val_scenes,
        "minutes": f"{options.minutes:.3g}",
        "steps": trained["steps"],
        "parameters": f"{sum(p.numel() for p in detector.model.parameters()) / 1e6:.1f}",
        "milliseconds": f"{1000 * seconds:.0f}",
    }
    hint = longer(seen, options.minutes) if short else None
    page = _write_page(folder, weights, run, report, images, hint)
    print(f"\nOpen {page} in a browser.")
    return Outcome({**trained, "out": folder, "weights": weights, "metrics": report["metrics"], "page": page})


def longer(seen: int, minutes: float) -> str:
    """What longer training would give, where the machine trained on fewer images than the promised AP needs."""
    needed = math.ceil(minutes * ENOUGH / max(seen, 1))
    return (
        f"Longer training gives a better detector. In {minutes:.3g} minutes this machine trained on {seen} images, "
        f"repeats included; AP {REACHED} needs about {ENOUGH}: use --minutes {needed}."
    )


def _predict_scenes(detector: "Detector", unseen: "Dataset", folder: Path) -> tuple[list[Shown], float]:
    """Pairs of ground truth and detections per validation scene, the worst first, and the seconds per image."""
    from twostage.drawing import draw_pair, save_picture

    judged = []
    seconds = []
    for index in range(len(unseen)):
        start = time.perf_counter()
        (detections,) = detector.predict([unseen.path(index)], conf=CONFIDENT)
        seconds.append(time.perf_counter() - start)
        truth = unseen.objects(index)
        pair = draw_pair(
            unseen.image(index),
            (truth.boxes, truth.labels),
            (detections.boxes, detections.class_ids, detections.scores),
            detections.names,
            min_side=0,
        )
        path = folder / f"{Path(unseen.file_name(index)).stem}.jpg"
        save_picture(pair, path)
        hits = count_hits(truth.boxes, truth.labels, detections)
        objects = len(truth.labels)
        missed, surplus = objects - hits, len(detections) - hits
        note = f"{hits} of {objects} found" if missed else f"all {objects} found" if objects > 1 else "found"
        note += f", {surplus} too many" if surplus else ""
        judged.append((missed + surplus, index, Shown(path, f"scene {index + 1}", note)))
    worst = sorted(judged, key=lambda row: (-row[0], row[1]))[:2]
    rest = [row for row in judged if row not in worst][:10]
    # The median, because the first predictions include set-up.
    return [shown for _, _, shown in worst + rest], sorted(seconds)[len(seconds) // 2]


def count_hits(boxes: Any, labels: Any, detections: "Detections") -> int:
    """Objects with a detection of their class at IoU 0.5 or more; a detection matches one object."""
    from twostage.evaluation.groups import paired_iou

    free = list(range(len(detections)))
    hits = 0
    for box, label in zip(boxes, labels, strict=True):
        for candidate in free:
            same = detections.class_ids[candidate] == label
            if same and paired_iou(box[None], detections.boxes[candidate][None])[0] >= FOUND_IOU:
                free.remove(candidate)
                hits += 1
                break
    return hits


def _write_page(
    folder: Path,
    weights: Path,
    run: Mapping[str, object],
    report: Mapping[str, Any],
    images: Sequence[Shown],
    hint: str | None,
) -> Path:
    from twostage.environment import environment

    env = environment()
    values = {
        **run,
        **{name: f"{report['metrics'][name]:.3f}" for name in ("AP", "AP50", "AP75")},
        "command": command(own_command()),
        "scenes": command(folder / "scenes" / "val"),
        "weights": command(weights),
        "twostage": env["twostage"],
        "torch": env["packages"]["torch"],
        "python": env["python"],
        "cpu": env["cpu"]["name"],
        "cores": env["cpu"]["cores"],
    }
    plots = [
        Shown(folder / "train" / "loss.png", "Losses, AP and learning rate", wide=True),
        Shown(folder / "train" / "pr.png", "Precision and recall", wide=True),
        Shown(folder / "train" / "confusion.png", "Confusion"),
        Shown(folder / "train" / "labels.png", "Label statistics of the training scenes"),
    ]
    objects = report["settings"]["objects_per_class"]
    return write_page(
        folder / "index.html",
        "demo_page.html",
        values,
        hint=[f"<p>{html.escape(hint)}</p>"] if hint else [],
        images=map(_figure, images),
        plots=map(_figure, plots),
        # The AP of a class without objects is undefined.
        classes=(_class_row(name, objects[name], row) for name, row in report["per_class"].items() if objects[name]),
    )


def own_command() -> str:
    """The command that runs this command line from the current folder: its name, if the shell finds it."""
    called = Path(sys.argv[0])
    if shutil.which("twostage") or called.name != "twostage":
        return "twostage"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called.absolute())


def _figure(shown: Shown) -> str:
    kind = "jpeg" if shown.path.suffix == ".jpg" else "png"
    return figure(shown.path.read_bytes(), kind, shown.title, shown.note, wide=shown.wide)


def _class_row(name: str, objects: int, row: Mapping[str, float]) -> str:
    bar = f'<i style="width:{100 * max(0.0, row["AP"]):.1f}%"></i>'
    return (
        f"<tr><td>{html.escape(name)}</td><td>{objects}</td><td>{row['AP']:.3f}</td><td>{row['AP50']:.3f}</td>"
        f'<td class="bar">{bar}</td></tr>'
    )
