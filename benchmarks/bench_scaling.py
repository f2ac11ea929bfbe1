"""How time and memory grow: with the image, proposals, classes, the batch, and boxes to learn from.

    python benchmarks/bench_scaling.py --out benchmarks/results/scaling.md

Every point is a process of its own: three warm calls are timed, its peak memory is read at the end. Predictions are
those of a prepared ResNet-18 with a pyramid whose class scores are spread as a trained head's are, so that suppression
has work; training steps are of the same model. `growth` is the exponent between the last two points: 1 is linear. A
plot of each is written beside the table.
"""

import argparse
import concurrent.futures
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path

import torch
from _timing import finish, hardware, table
from matplotlib.figure import Figure

from twostage.data.batch import Batch, stack_images, stack_targets
from twostage.inference.prepare import prepare
from twostage.models.build import build
from twostage.models.configure import configure
from twostage.models.two_stage import PARTS, TwoStage
from twostage.models.zoo import named
from twostage.training.optimiser import train_mode

MODEL = "faster_rcnn_resnet18_fpn"
SPREAD = 2.5  # standard deviation of the class scores before softmax
MIB = 2**20

CURVES: dict[str, tuple[str, Sequence[int]]] = {
    "area": ("kilopixels of an image", (100, 250, 500, 1000, 2000, 4000)),
    "proposals": ("proposals an image", (50, 100, 300, 1000, 2000)),
    "classes": ("classes", (2, 20, 80, 365, 1200)),
    "batch": ("images at once", (1, 2, 4, 8, 16)),
    "boxes": ("boxes an image in training", (1, 10, 50, 100, 250, 500)),
}


def point(curve: str, value: int) -> tuple[float, float]:
    """Milliseconds of a call and MiB at the peak; to be called in a process of its own."""
    torch.manual_seed(0)
    call = training(value) if curve == "boxes" else prediction(curve, value)
    call()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return statistics.median(times), int(status.split("VmHWM:")[1].split()[0]) * 1024 / MIB


def prediction(curve: str, value: int) -> Callable[[], object]:
    """A prediction with one setting changed."""
    classes = value if curve == "classes" else 80
    proposals = value if curve == "proposals" else 1000
    fields = {"rpn_keep_test": proposals, "rpn_top_test": max(1000, proposals)}
    model = build(configure(named(MODEL), fields), classes)
    kilopixels = value if curve == "area" else 300
    width = round((kilopixels * 1000 * 4 / 3) ** 0.5)
    images = torch.rand(value if curve == "batch" else 1, 3, round(width * 3 / 4), width)
    batch = stack_images(list(images))
    spread(model.eval(), batch)
    fast = prepare(model)
    return lambda: fast.detect(batch, fast.config.postprocess)


@torch.inference_mode()
def spread(model: TwoStage, batch: Batch) -> None:
    """Scale the last layer so that class scores differ as a trained head's do."""
    logits = model.stages(Batch(batch.images[:1], batch.sizes[:1])).predictions[-1].logits
    model.head.classes.weight.data.mul_(SPREAD / logits.std())


def training(boxes: int) -> Callable[[], object]:
    """A step on two images with so many boxes each."""
    model = build(named(MODEL), 80)
    train_mode(model, PARTS, 2)
    batch = stack_images(list(torch.rand(2, 3, 480, 640)))
    corners = torch.rand(2, boxes, 2) * torch.tensor([560.0, 400.0])
    sides = 10 + 70 * torch.rand(2, boxes, 2)
    truth = list(torch.cat([corners, corners + sides], dim=2))
    targets = stack_targets(truth, list(torch.randint(0, 80, (2, boxes))), seeds=[0, 1])

    def step() -> None:
        model.zero_grad(set_to_none=True)
        losses = model(batch, targets)
        assert isinstance(losses, dict)
        torch.stack(list(losses.values())).sum().backward()

    return step


def measured(curve: str, value: int) -> tuple[float, float]:
    """A point from a fresh process."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(point, curve, value).result()
    print(f"{curve} {value}: {found[0]:.0f} ms, {found[1]:.0f} MiB", file=sys.stderr, flush=True)
    return found


def growth(values: Sequence[int], measures: Sequence[float]) -> float:
    """The exponent between the last two points."""
    return log(measures[-1] / measures[-2]) / log(values[-1] / values[-2])


def plot(name: str, values: Sequence[int], points: Sequence[tuple[float, float]], path: Path) -> None:
    """Time and memory over the value."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, measures, what in zip(
        figure.subplots(1, 2), zip(*points, strict=True), ("milliseconds", "MiB at the peak"), strict=True
    ):
        axes.plot(values, measures, marker="o", color="#0072b2", clip_on=False)
        axes.set(xlabel=name, ylabel=what, xlim=(0, None), ylim=(0, None))
        axes.grid(color="#dddddd", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def main() -> int:
    """Measure all, print and write the table and the plots; 1 where time grows faster than its cause."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--curves", nargs="+", default=list(CURVES), choices=list(CURVES))
    given = parser.parse_args()
    rows, steep = [], False
    for curve in given.curves:
        name, values = CURVES[curve]
        points = [measured(curve, value) for value in values]
        grown = growth(values, [t for t, _ in points])
        steep |= grown > 1.1
        shown = [f"{value}: {t:.0f} ms, {m:.0f} MiB" for value, (t, m) in zip(values, points, strict=True)]
        rows.append([name, "; ".join(shown), f"{grown:.2f}", f"{growth(values, [m for _, m in points]):.2f}"])
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            plot(name, values, points, given.out.with_name(f"{given.out.stem}_{curve}.png"))
    text = "\n\n".join(
        [
            "# How time and memory grow",
            "`python benchmarks/bench_scaling.py`: predictions of a prepared ResNet-18 with a pyramid (300 kilopixels, "
            "1000 proposals, 80 classes, one image, where nothing else is said); training steps of two images.",
            hardware(),
            table(["what grows", "time and peak memory", "growth of time", "growth of memory"], rows),
        ]
    )
    finish(text, given.out)
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main())
