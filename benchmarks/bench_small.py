"""Images a second of the small detectors, from files to detections, eight at once, beside torchvision's MobileNet.

    python benchmarks/bench_small.py --out benchmarks/results/small.md

The shortest side becomes 320 pixels in all. Weights are random: all find as many boxes as they may. Interleaved in one
process.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from _pictures import small_files, whence
from _timing import compare, finish, hardware, table
from torchvision.io import decode_image
from torchvision.models import detection

from twostage import Detector
from twostage.inference.precision import choose_precision

FILES = 64
BATCH = 8
MODELS = ("faster_rcnn_tiny_fpn", "faster_rcnn_lite0_fpn", "faster_rcnn_mobilenet_v3_large_320_fpn")
PRECISIONS = tuple(dict.fromkeys(("fp32", choose_precision(torch.device("cpu"), "auto"))))
NAMES = ["a", "b", "c"]


def ours(model: str, precision: str) -> Detector:
    """A detector with random weights."""
    torch.manual_seed(0)
    return Detector.build(model, NAMES, device="cpu", precision=precision, size=320)


def by_ours(detector: Detector, files: Sequence[Path]) -> int:
    """How many boxes are found."""
    return sum(len(found) for found in detector.predict(list(files), batch=BATCH))


@torch.inference_mode()
def by_peer(model: torch.nn.Module, files: Sequence[Path]) -> int:
    """How many boxes torchvision's finds."""
    count = 0
    for first in range(0, len(files), BATCH):
        images = [decode_image(str(file), "RGB").float() / 255 for file in files[first : first + BATCH]]
        count += sum(len(found["boxes"]) for found in model(images))
    return count


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    files = small_files(FILES)
    torch.manual_seed(0)
    peer = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=len(NAMES) + 1
    )
    cases: dict[str, Callable[[], object]] = {
        f"{model} | {precision}": partial(by_ours, ours(model, precision), files)
        for model in MODELS
        for precision in PRECISIONS
    }
    cases["torchvision's fasterrcnn_mobilenet_v3_large_320_fpn | fp32"] = partial(by_peer, peer.eval(), files)
    times = compare(cases, repeats=given.repeats, warmup=1)
    rows = [
        [*case.split(" | "), f"{1e3 * FILES / taken.median:.1f} ({1e3 * FILES / taken.minimum:.1f})"]
        for case, taken in times.items()
    ]
    text = "\n\n".join(
        [
            "# Images a second of small detectors at 320 pixels, by median (by minimum)",
            f"`python benchmarks/bench_small.py`. {FILES} files, {BATCH} at once. {whence()}",
            hardware(),
            table(["detector", "precision", "images a second"], rows),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
