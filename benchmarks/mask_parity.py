"""torchvision's Mask R-CNNs and ours with the same weights: the same boxes, masks and pasted pixels?

    python benchmarks/mask_parity.py --data FOLDER [--out benchmarks/results/mask_parity.md]

Random weights, calibrated on real photos (see `_calibrated`), are imported through `Detector.from_state_dict`: in
double precision, where rounding decides nothing, and in float32, with ours as `predict` runs it. Beside that stands
torchvision in float32 against itself with its memory in another order, which tells how far rounding alone goes. FOLDER
holds `coco-photos/images/`; by default it is `data` in the folder that TWOSTAGE_DATA names.
"""

import argparse
import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _calibrated import calibrated, in_float64
from _timing import finish, hardware, table
from torch import Tensor, nn
from torchvision.models import detection

from twostage import Detector
from twostage.data.batch import Originals, stack_images
from twostage.data.images import read_image
from twostage.inference.predictor import to_arrays
from twostage.inference.prepare import PreparedModel
from twostage.ops.masks import decode

MODELS = {
    "mask_rcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
    "mask_rcnn_resnet50_fpn_v2": detection.maskrcnn_resnet50_fpn_v2,
}
# Of boxes, of probabilities, and the share of pasted pixels. In float32 a rounding before may move a box, and a mask
# with it: there the bound of probabilities is of their median.
PIXELS, PROBABILITY, SHARE, MEDIAN = 1e-2, 1e-4, 1e-4, 1e-5
PAIRED = 0.95  # of all detections are found by both; in double precision all
SCORE = 1e-3
HEADER = ("model", "arithmetic", "photos", "detections", "in both", "box max, px", "mask median", "mask max", "pixels")


class Found(NamedTuple):
    """Detections of one picture: masks as probabilities, and as pixels of the picture."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    pixels: np.ndarray


Find = Callable[[np.ndarray], Found]


def theirs(model: nn.Module) -> Find:
    """torchvision's detections, with the probabilities before they are pasted."""
    dtype = next(model.parameters()).dtype
    seen: dict[str, Tensor] = {}
    model.roi_heads.mask_predictor.register_forward_hook(lambda _m, _i, out: seen.update(now=out.sigmoid()))

    def find(picture: np.ndarray) -> Found:
        found = model([torch.from_numpy(picture).permute(2, 0, 1).to(dtype) / 255])[0]
        labels = found["labels"]
        masks = seen["now"][torch.arange(len(labels)), labels]
        pixels = found["masks"][:, 0] >= 0.5
        return Found(*(v.numpy() for v in (found["boxes"], found["scores"], labels - 1, masks, pixels)))

    return find


def ours(model: PreparedModel) -> Find:
    """Ours, in the arithmetic of the model."""
    rule = model.config.image

    def find(picture: np.ndarray) -> Found:
        image = rule.resizing(torch.from_numpy(picture).permute(2, 0, 1).to(model.dtype) / 255)
        originals = Originals.of([picture.shape[:2]], rule.resizing)
        batch = stack_images([image], divisor=rule.divisor, originals=originals)
        found = model.detect(batch, model.config.postprocess)
        (mine,) = to_arrays(found, batch, model.config)
        assert found.masks is not None
        masks = found.masks[0][found.valid[0]].numpy()
        return Found(mine["boxes"], mine["scores"], mine["class_ids"], masks, decode(mine["masks"]))

    return find


class Tally:
    """What two libraries find in the same pictures, summed up."""

    def __init__(self) -> None:
        self.boxes, self.masks = 0.0, [np.zeros(0)]
        self.detections = self.paired = self.wrong = self.pixels = 0

    def add(self, one: Found, other: Found) -> None:
        """A picture's detections of both."""
        self.detections += max(len(one.scores), len(other.scores))
        for i, j in partners(one, other):
            self.paired += 1
            self.boxes = max(self.boxes, float(np.abs(one.boxes[i] - other.boxes[j]).max()))
            self.masks.append(np.abs(one.masks[i] - other.masks[j]).ravel())
            self.wrong += int((one.pixels[i] != other.pixels[j]).sum())
            self.pixels += one.pixels[i].size

    def row(self) -> list[object]:
        """Cells of the table."""
        each = np.concatenate(self.masks)
        told = (f"{value:.1e}" for value in (self.boxes, np.median(each), each.max()))
        return [self.detections, self.paired, *told, f"{self.wrong} of {self.pixels} ({self.wrong / self.pixels:.1e})"]

    def faults(self, *, exact: bool) -> list[str]:
        """What misses the numbers to reach."""
        each = np.concatenate(self.masks)
        bound, reached = (PROBABILITY, each.max()) if exact else (MEDIAN, np.median(each))
        return [
            says
            for wrong, says in (
                (
                    self.paired < (1 if exact else PAIRED) * self.detections,
                    f"{self.paired} of {self.detections} are found by both",
                ),
                (self.boxes > PIXELS, f"boxes differ by {self.boxes:.1e} px"),
                (reached > bound, f"probabilities differ by {reached:.1e}{'' if exact else ' in the median'}"),
                (self.wrong > SHARE * self.pixels, f"{self.wrong} of {self.pixels} pixels differ"),
            )
            if wrong
        ]


def partners(one: Found, other: Found) -> list[tuple[int, int]]:
    """Detections of both that are the same one: of a class, a box and a score; neighbours in rank first."""
    pairs, free = [], set(range(len(other.scores)))
    for i in range(len(one.scores)):
        for j in sorted(free, key=lambda j, i=i: abs(i - j)):  # type: ignore[misc]
            same = one.labels[i] == other.labels[j] and abs(one.scores[i] - other.scores[j]) < SCORE
            if same and np.abs(one.boxes[i] - other.boxes[j]).max() < 1:
                free.remove(j)
                pairs.append((i, j))
                break
    return pairs


@torch.inference_mode()
def compare(name: str, pictures: list[np.ndarray], *, size: int) -> tuple[list[list[object]], list[str]]:
    """Rows of the table, and what misses the numbers to reach."""
    sample = [torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pictures[:4]]
    network = calibrated(MODELS[name], 80, sample)
    network.transform.min_size, network.transform.max_size = (size,), 2 * size
    detector = Detector.from_state_dict(
        network.state_dict(),
        source="torchvision",
        model=name,
        names=[str(k) for k in range(80)],
        device="cpu",
        size=size,
        max_size=2 * size,
    )
    double = PreparedModel(in_float64(detector.model), torch.float64)
    reordered = copy.deepcopy(network).to(memory_format=torch.channels_last)
    cases = {
        "float64": (theirs(copy.deepcopy(network).double()), ours(double)),
        "float32": (theirs(network), ours(detector.prepared)),
        "float32, torchvision beside itself, channels last": (theirs(copy.deepcopy(network)), theirs(reordered)),
    }
    rows, faults = [], []
    for arithmetic, (one, other) in cases.items():
        tally = Tally()
        for picture in pictures:
            tally.add(one(picture), other(picture))
        rows.append([name, arithmetic, len(pictures), *tally.row()])
        if "itself" not in arithmetic:
            faults += [f"{name}, {arithmetic}: {says}" for says in tally.faults(exact=arithmetic == "float64")]
    return rows, faults


def main() -> None:
    """Compare both models and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = os.environ.get("TWOSTAGE_DATA")
    parser.add_argument("--data", type=Path, default=Path(home) / "data" if home else None, required=home is None)
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    photos = sorted((given.data / "coco-photos" / "images").iterdir())[: given.photos]
    rows, faults = [], []
    for name in MODELS:
        found, missed = compare(name, [read_image(path) for path in photos], size=given.size)
        rows += found
        faults += missed
    verdict = "\n".join(faults) or (
        f"Within {PIXELS} px, {PROBABILITY} of probability in double precision and {MEDIAN} in the median in float32, "
        f"{SHARE} of all pixels; all detections are found by both in double precision, {PAIRED:.0%} in float32."
    )
    finish(f"`python benchmarks/mask_parity.py`\n\n{hardware()}\n\n{table(HEADER, rows)}\n\n{verdict}", given.out)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
