"""Inference beside torchvision's: Faster and Mask R-CNN with ResNet-50 and a pyramid, photos stretched to 800 x 1066.

    python benchmarks/bench_inference.py --out benchmarks/results/inference.md

Both start from the same float tensors and the same calibrated random weights (`_calibrated.py`), interleaved in one
process; torchvision in float32. Memory is the peak of a process of its own with one of the two, after three calls.
Detections are compared in the same run. Of masks ours gives run lengths, torchvision probabilities of whole pictures.
VGG16 is beside the same layers run plainly, for torchvision has no such detector.
"""

import argparse
import concurrent.futures
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _calibrated import calibrated
from _pictures import photos, small_files, whence
from _timing import Times, compare, finish, hardware, table, versus
from torch import Tensor
from torchvision.models import detection

from twostage import Detector
from twostage.data.batch import stack_images
from twostage.inference.precision import choose_precision
from twostage.inference.predictor import to_arrays
from twostage.inference.prepare import PreparedModel, prepare
from twostage.models.build import build
from twostage.models.zoo import named

PEERS = {
    "faster_rcnn_resnet50_fpn": detection.fasterrcnn_resnet50_fpn,
    "mask_rcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
}
FASTER, MASK = PEERS
TITLES = {FASTER: "", MASK: "Mask R-CNN, "}
SHAPE = (800, 1066)
# bf16 where it serves: where it is emulated, a prediction takes six times as long as in float32.
PRECISIONS = tuple(dict.fromkeys(("fp32", choose_precision(torch.device("cpu"), "auto"))))
NAMES = [str(i) for i in range(80)]


def peer(model: str, sample: Sequence[Tensor]) -> torch.nn.Module:
    """torchvision's detector."""
    return calibrated(PEERS[model], len(NAMES), sample)


def ours(model: str, theirs: torch.nn.Module, precision: str = "fp32", **fields: Any) -> Detector:
    """The same weights in ours."""
    given = {"source": "torchvision", "model": model, "names": NAMES, "device": "cpu", "precision": precision}
    return Detector.from_state_dict(theirs.state_dict(), **given, **fields)


def found_by(model: PreparedModel, images: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Detections from tensors, as `predict` finds them."""
    batch = stack_images(images, divisor=model.config.image.divisor)
    found = model.detect(batch, model.config.postprocess)
    return to_arrays(found, batch, model.config)


@torch.inference_mode()
def found_by_peer(model: torch.nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Detections of torchvision's."""
    found: list[dict[str, Tensor]] = model(list(images))
    return found


def agreement(theirs: torch.nn.Module, model: PreparedModel, images: Sequence[Tensor]) -> str:
    """How many detections are the same, place by place, and how far their boxes lie apart."""
    same, total, distances = 0, 0, []
    for image in images:
        (a,), (b,) = found_by_peer(theirs, [image]), found_by(model, [image])
        count = min(len(a["scores"]), len(b["scores"]))
        alike = a["labels"].numpy()[:count] - 1 == b["class_ids"][:count]
        alike &= np.abs(a["scores"].numpy()[:count] - b["scores"][:count]) < 1e-3
        distance = np.abs(a["boxes"].numpy()[:count] - b["boxes"][:count]).max(axis=1)
        alike &= distance < 1
        same, total = same + int(alike.sum()), total + max(len(a["scores"]), len(b["scores"]))
        distances.append(distance[alike])
    apart = np.concatenate(distances)
    far = f"{np.median(apart):.1e} px apart in the median, {apart.max():.1e} at most"
    return f"{same} of {total} in the same place; boxes {far}"


def peak(model: str, who: str, size: int) -> float:
    """GiB of a process that predicts three batches; to be called in a process of its own."""
    images = photos(SHAPE, size)
    call: Callable[[], object]
    if who == "torchvision":
        theirs = PEERS[model](weights=None, weights_backbone=None, num_classes=len(NAMES) + 1)
        call = partial(found_by_peer, theirs.eval(), images)
    else:
        detector = Detector.build(model, NAMES, device="cpu", precision=who)
        call = lambda: found_by(detector.prepared, images)  # noqa: E731
    for _ in range(3):
        call()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def in_its_own_process(function: Callable[..., float], *arguments: object) -> float:
    """The result of a function in a fresh process."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def of_resnet50(name: str, batches: Sequence[int], repeats: int) -> tuple[list[list[str]], str]:
    """Rows of times, and what the detections say."""
    images = photos(SHAPE, max(batches))
    theirs = peer(name, images)
    models = {precision: ours(name, theirs, precision).prepared for precision in PRECISIONS}
    rows = []
    for size in batches:
        some = images[:size]
        cases: dict[str, Callable[[], object]] = {"torchvision": lambda some=some: found_by_peer(theirs, some)}  # type: ignore[misc]
        for precision, model in models.items():
            cases[precision] = lambda some=some, model=model: found_by(model, some)  # type: ignore[misc]
        times = compare(cases, repeats=repeats)
        for precision in models:
            case = f"{TITLES[name]}ResNet-50 FPN, 800 x 1066, batch {size}, {precision} against its float32"
            rows.append(versus(case, times[precision], times["torchvision"]))
    return rows, agreement(theirs, models["fp32"], images)


def of_vgg16(repeats: int) -> list[list[str]]:
    """A row: the prepared VGG16 beside the trained one."""
    images = photos((600, 800), 1)
    model = build(named("faster_rcnn_vgg16"), 20)
    fast, plain = prepare(model), PreparedModel(model, torch.float32)
    times = compare({"plain": lambda: found_by(plain, images), "fast": lambda: found_by(fast, images)}, repeats=repeats)
    return [versus("VGG16, 600 x 800, 300 proposals, float32 against the same layers run plainly", *_pair(times))]


def of_tiny(repeats: int) -> list[list[str]]:
    """Images a second of the tiny model at 320 px, from files to detections, eight at once."""
    files = small_files(64)
    torch.manual_seed(0)
    detectors = {
        precision: Detector.build("faster_rcnn_tiny_fpn", ["a", "b", "c"], device="cpu", precision=precision)
        for precision in PRECISIONS
    }
    times = compare(
        {name: partial(_exhaust, detector, files) for name, detector in detectors.items()}, repeats=repeats, warmup=1
    )
    return [
        [
            f"{name}, {len(files)} files",
            f"{1e3 * len(files) / taken.median:.1f} ({1e3 * len(files) / taken.minimum:.1f})",
        ]
        for name, taken in times.items()
    ]


def _exhaust(detector: Detector, files: Sequence[Path]) -> int:
    return sum(len(found) for found in detector.predict(list(files), batch=8))


def _pair(times: dict[str, Times]) -> tuple[Times, Times]:
    return times["fast"], times["plain"]


def main() -> None:
    """Time, compare, measure memory, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    given = parser.parse_args()
    rows, agreed = of_resnet50(FASTER, given.batches, given.repeats)
    masked, masks_agreed = of_resnet50(MASK, given.batches, given.repeats)
    rows += masked
    rows += of_vgg16(given.repeats)
    quick = of_tiny(given.repeats)
    memory = [
        [
            f"{TITLES[name]}batch {size}",
            *(f"{in_its_own_process(peak, name, who, size):.2f}" for who in (*PRECISIONS, "torchvision")),
        ]
        for name in PEERS
        for size in given.batches
    ]
    text = "\n\n".join(
        [
            "# Inference, milliseconds: median (minimum)",
            f"`python benchmarks/bench_inference.py`. {whence()}",
            hardware(),
            table(["case", "twostage", "peer", "times faster, by median (by minimum)"], rows),
            "Images a second of `faster_rcnn_tiny_fpn` at 320 px, files read and decoded, eight at once, by median "
            "(by minimum):",
            table(["precision", "images a second"], quick),
            f"Detections in float32 beside torchvision's: {agreed}; of Mask R-CNN {masks_agreed}. (What bf16 changes "
            "only trained weights can tell: see precision.md.)",
            "Peak memory of a process, GiB:",
            table(["case", *(f"twostage {precision}" for precision in PRECISIONS), "torchvision fp32"], memory),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
