"""What was to be reached in speed and memory, beside what the tables of benchmarks/results say.

    python benchmarks/goals.py --out benchmarks/results/goals.md

`make bench` ends with it. Where a table is missing, so is the number.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from _timing import finish, table

RESULTS = Path(__file__).parent / "results"

Cells = list[str]


class Goal(NamedTuple):
    """A number from the row of a table, to be reached or, where it says so, not to be passed.

    `limit` is what stands in the way of one that is not reached.
    """

    what: str
    file: str
    row: str
    read: Callable[[Cells], str]
    reach: str
    stretch: str
    limit: str = ""


def faster(cells: Cells) -> str:
    """Times faster than the peer, by median (by minimum)."""
    return cells[-1]


def share_of_time(cells: Cells) -> str:
    """The share of the peer's time, by median (by minimum)."""
    median, minimum = (float(number.strip("()")) for number in cells[-1].split())
    return f"{1 / median:.2f} ({1 / minimum:.2f})"


def share_of_last(column: int) -> Callable[[Cells], str]:
    """A column's share of the last one."""
    return lambda cells: f"{float(cells[column]) / float(cells[-1]):.2f}"


def times_before(cells: Cells) -> str:
    """Times faster than before, by the medians of both."""
    return f"{float(cells[0]) / float(cells[1]):.2f}"


def times_fewer(cells: Cells) -> str:
    """How many times the operators of ours torchvision has."""
    return cells[2]


PRODUCTS = "the same, its products alone at the speed of `torch.mm`"
R50, STEP = "ResNet-50 FPN, 800 x 1066", "ResNet-50 FPN, 480 x 640, batch 2"
A2 = "limited to AVX2"
A512 = "limited to AVX-512 without bf16"
IMPORT = "`import torch` alone takes 0.46"
MISSED = "none known: missed, after what `tried.md` lists; limited to AVX2 products take 109 of 183 ms"
START = "one prediction from a cold start, of torchvision's time"
GOALS = (
    Goal("prediction, float32, batch 1", "inference", f"{R50}, batch 1, fp32", faster, "1.5", "2.0"),
    Goal("prediction, bf16, batch 1", "inference", f"{R50}, batch 1, bf16", faster, "3.0", "3.4"),
    Goal("prediction, float32, batch 4", "inference", f"{R50}, batch 4, fp32", faster, "2.0", "2.2"),
    Goal("prediction, bf16, batch 4", "inference", f"{R50}, batch 4, bf16", faster, "3.5", "4.0"),
    Goal("Mask R-CNN, float32, batch 1", "inference", f"Mask R-CNN, {R50}, batch 1, fp32", faster, "1.5", "2.0"),
    Goal("Mask R-CNN, bf16, batch 1", "inference", f"Mask R-CNN, {R50}, batch 1, bf16", faster, "3.0", "3.4"),
    Goal("Mask R-CNN, float32, batch 4", "inference", f"Mask R-CNN, {R50}, batch 4, fp32", faster, "2.0", "2.2"),
    Goal("Mask R-CNN, bf16, batch 4", "inference", f"Mask R-CNN, {R50}, batch 4, bf16", faster, "3.5", "4.0"),
    Goal("pasting 100 masks on 1333 x 800", "masks", "run lengths, its way", faster, "5", ""),
    Goal("training step, float32", "training_step", f"{STEP}, float32", faster, "1.2", "1.4"),
    Goal("training step, bf16", "training_step", f"{STEP}, bf16 against its float32", faster, "2.0", "2.5"),
    Goal(
        "peak memory, batch 1, float32, of torchvision's",
        "inference",
        "batch 1",
        share_of_last(0),
        "<= 1",
        "0.7",
        "Winograd's kernels are four times as large: 0.17 GiB for ResNet-50 with FPN",
    ),
    Goal("the same, bf16", "inference", "batch 1", share_of_last(1), "<= 1", "0.7"),
    Goal("peak memory, batch 4, float32, of torchvision's", "inference", "batch 4", share_of_last(0), "<= 1", "0.7"),
    Goal("the same, bf16", "inference", "batch 4", share_of_last(1), "<= 1", "0.7"),
    Goal(
        "peak memory, training, of torchvision's",
        "training_step",
        "own boxes an image",
        share_of_last(0),
        "<= 1",
        "0.7",
    ),
    Goal(f"{START}: a script", "startup", "Detector.load(...).predict(...)", share_of_time, "0.6", "", IMPORT),
    Goal(f"{START}: the command line", "startup", "twostage predict", share_of_time, "0.6", "", IMPORT),
    Goal(
        "VGG16, 600 x 800, 300 proposals",
        "inference",
        "VGG16",
        faster,
        "1.5",
        "2.0",
    ),
    Goal(f"{A2}: prediction, float32, batch 1", "avx2/inference", f"{R50}, batch 1, fp32", faster, "1.8", "2.2"),
    Goal(f"{A2}: the same, batch 4", "avx2/inference", f"{R50}, batch 4, fp32", faster, "2.0", "2.5"),
    Goal(f"{A2}: Mask R-CNN, batch 1", "avx2/inference", f"Mask R-CNN, {R50}, batch 1, fp32", faster, "1.6", "2.0"),
    Goal(f"{A2}: VGG16, 600 x 800", "avx2/inference", "VGG16", faster, "1.4", "2.0"),
    Goal(
        f"{A2}: training step of the tiny net",
        "avx2/training_step",
        "tiny",
        faster,
        "3.5",
        "4.5",
        MISSED,
    ),
    Goal(f"{A2}: {PRODUCTS}", "avx2/training_step", "tiny, products alone", faster, "", ""),
    Goal(
        f"{A2}: the same step, times faster than at 1b3faab",
        "avx2/compare_versions",
        "train faster_rcnn_tiny_fpn 192",
        times_before,
        "1.6",
        "2.0",
        MISSED,
    ),
    Goal(
        f"{A2}: tiny at 320, float32, times faster than at 1b3faab",
        "avx2/compare_versions",
        "predict faster_rcnn_tiny_fpn 320",
        times_before,
        "1.5",
        "2.0",
        "none known: products take 17 of 30 ms; reached without a limit",
    ),
    Goal(
        "ResNet-50 with FPN at 480, bf16, times faster than at 1b3faab",
        "compare_versions",
        "predict faster_rcnn_resnet50_fpn 480 bf16",
        times_before,
        "1",
        "",
        "none known: a layer takes 16 microseconds more outside of its operators, where its form is looked up",
    ),
    Goal(f"{A2}: training step, float32", "avx2/training_step", f"{STEP}, float32", faster, "1.2", "1.4"),
    Goal(f"{A512}: prediction, float32, batch 1", "avx512/inference", f"{R50}, batch 1, fp32", faster, "1.8", "2.2"),
    Goal(f"{A512}: the same, batch 4", "avx512/inference", f"{R50}, batch 4, fp32", faster, "2.0", "2.5"),
    Goal(f"{A512}: Mask R-CNN, batch 1", "avx512/inference", f"Mask R-CNN, {R50}, batch 1, fp32", faster, "1.6", "2.0"),
    Goal(f"{A512}: VGG16, 600 x 800", "avx512/inference", "VGG16", faster, "1.4", "2.0"),
    Goal(f"{A512}: training step of the tiny net", "avx512/training_step", "tiny", faster, "3.5", "4.5", MISSED),
    Goal(f"{A512}: {PRODUCTS}", "avx512/training_step", "tiny, products alone", faster, "", ""),
    Goal(f"{A512}: training step, float32", "avx512/training_step", f"{STEP}, float32", faster, "1.2", "1.4"),
    Goal("operators on a device, times fewer, batch 1", "operators", "batch 1", times_fewer, "2", ""),
    Goal("the same, batch 8", "operators", "batch 8", times_fewer, "2", ""),
    Goal("AP lost by bf16, scenes", "precision", "generated scenes", faster, "<= 0.3", "0.1"),
    Goal("AP lost by bf16, blood cells", "precision", "blood cells", faster, "<= 0.3", "0.1"),
    Goal("tiny at 320, images a second, bf16", "inference", "bf16, 64 files", faster, "40", "80"),
    Goal("the same, float32", "inference", "fp32, 64 files", faster, "40", "80"),
)


def number(goal: Goal) -> str:
    """What the table says; the row whose name begins as the goal's."""
    path = RESULTS / f"{goal.file}.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("|")]
    return next((goal.read(cells) for name, *cells in rows if name.startswith(goal.row)), "no table")


def hardware_of(file: str) -> str:
    """The line of a table that names when and where it was made."""
    path = RESULTS / f"{file}.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith("20")), "no table")


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = [[goal.what, goal.reach, goal.stretch, number(goal), goal.limit] for goal in GOALS]
    files = dict.fromkeys(goal.file for goal in GOALS)
    text = "\n\n".join(
        [
            "# Goals of speed and memory",
            "`python benchmarks/goals.py`, from the tables beside this one, which name their hardware. Times faster "
            "than torchvision in float32 where nothing else is said, by the median (by the minimum).",
            table(["what", "reach", "stretch", "measured", "limit"], rows),
            "The hardware of each table:",
            table(["table", "hardware"], [[file, hardware_of(file)] for file in files]),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
