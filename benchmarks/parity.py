"""Same weights, same photos, same detections as torchvision?

    python benchmarks/parity.py --data FOLDER [--out benchmarks/results/parity.md]

torchvision's four Faster R-CNNs, calibrated on real photos (see `_calibrated`), are imported through
`Detector.from_state_dict` and run beside the originals on photos of different sizes, one at a time and four on a
canvas; then both give their training losses on the same sampled anchors and the same regions. With `--arithmetic
float64` both compute in double precision, where rounding decides nothing; with `itself` torchvision's network runs
beside itself with its memory in another order, which tells how far rounding alone goes in float32. FOLDER holds
`coco-photos/instances.json` and `coco-photos/images/`; by default it is `data` in the folder that TWOSTAGE_DATA names.
"""

import argparse
import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from _calibrated import calibrated, in_float64
from _timing import finish, hardware, table
from torch import Tensor, nn
from torchvision.models import detection

from twostage import Detector
from twostage.data.batch import Originals, stack_images, stack_targets
from twostage.data.images import read_image
from twostage.inference.predictor import make_batch, to_arrays
from twostage.models.proposals.rpn import Proposals
from twostage.models.targets.matching import NEGATIVE
from twostage.models.targets.sampling import Sample
from twostage.models.two_stage import Proposed, Samplers, TwoStage

MODELS = (
    "faster_rcnn_resnet50_fpn",
    "faster_rcnn_resnet50_fpn_v2",
    "faster_rcnn_mobilenet_v3_large_fpn",
    "faster_rcnn_mobilenet_v3_large_320_fpn",
)
SCORE_TIE = 1e-5
MEDIAN_PX, MAX_PX, LOSS = 1e-3, 1e-2, 1e-4
DISTINCT = 20
MOST, THRESHOLD = 100, 0.05  # both libraries' default


class Photo(NamedTuple):
    """A photo in RGB and its ground truth without crowds."""

    name: str
    image: np.ndarray
    boxes: Tensor
    labels: Tensor


class Found(NamedTuple):
    """Detections on a photo's own pixels, best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass
class Tally:
    """What two lists of detections have in common, summed over photos."""

    photos: int = 0
    detections: int = 0
    fewest_distinct: int = 10**9
    swapped: int = 0
    at_the_edge: int = 0
    different: list[str] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)  # of each coordinate
    scores: list[float] = field(default_factory=list)

    def add(self, name: str, theirs: Found, ours: Found) -> None:
        """Compare the detections of one photo, place by place."""
        self.photos += 1
        self.detections += len(theirs.boxes)
        self.fewest_distinct = min(self.fewest_distinct, len(theirs.boxes.round().unique(dim=0)))
        free = set(range(len(ours.boxes)))
        elsewhere = []
        for place in range(len(theirs.boxes)):
            partner = self._partner(place, theirs, ours, free)
            if partner is None:
                if self._at_the_edge(theirs.scores[place], ours):
                    self.at_the_edge += 1
                else:
                    elsewhere.append(place + 1)
                continue
            free.remove(partner)
            self.swapped += partner != place
            self.pixels += (ours.boxes[partner] - theirs.boxes[place]).abs().tolist()
            self.scores.append(abs(float(ours.scores[partner] - theirs.scores[place])))
        elsewhere += [i + 1 for i in free if not self._at_the_edge(ours.scores[i], theirs)]
        if elsewhere:
            count = len(theirs.boxes)
            places = f"{len(set(elsewhere))} of {count} places differ, number {min(elsewhere)} the first"
            self.different.append(f"{name}: {places}")

    def _partner(self, place: int, theirs: Found, ours: Found, free: set[int]) -> int | None:
        """Our detection of the same class and nearly the same box: at the same place, or a tie away."""
        for other in sorted(free, key=lambda i: abs(i - place)):
            same = ours.labels[other] == theirs.labels[place]
            if same and (ours.boxes[other] - theirs.boxes[place]).abs().max() < 1:
                low, high = sorted((place, other))
                between = theirs.scores[low : high + 1]
                if other == place or float(between.max() - between.min()) < SCORE_TIE:
                    return other
        return None

    @staticmethod
    def _at_the_edge(score: Tensor, other: Found) -> bool:
        """Whether the other list ends, at its most detections or at the threshold, within a tie of this score."""
        edge = other.scores[-1] if len(other.scores) == MOST else THRESHOLD
        return abs(float(score - edge)) < SCORE_TIE

    def faults(self) -> list[str]:
        """What misses the numbers to reach."""
        faults = [*self.different]
        if self.fewest_distinct < DISTINCT:
            faults.append(f"a photo with only {self.fewest_distinct} distinct detections proves nothing")
        if self.pixels and median(self.pixels) > MEDIAN_PX:
            faults.append(f"boxes differ by {median(self.pixels):.1e} px in the median")
        if self.pixels and max(self.pixels) > MAX_PX:
            faults.append(f"a box differs by {max(self.pixels):.1e} px")
        return faults


class FirstOfEach(NamedTuple):
    """The first positives and the first negatives instead of a random draw, for both libraries."""

    count: int
    positives: int

    def __call__(self, matches: Tensor, seeds: Tensor) -> Sample:
        """For twostage."""
        index = torch.zeros(len(matches), self.count, dtype=torch.int64)
        positive, valid = torch.zeros(2, len(matches), self.count, dtype=torch.bool)
        for i, row in enumerate(matches):
            first, second = self.pick(row >= 0, row == NEGATIVE)
            taken = torch.cat([first, second])
            index[i, : len(taken)] = taken
            positive[i, : len(first)] = True
            valid[i, : len(taken)] = True
        return Sample(index, positive, valid)

    def for_torchvision(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For torchvision: masks over the boxes of each image."""
        picked = [self.pick(row >= 1, row == 0) for row in labels]
        masks = [[torch.zeros(len(row), dtype=torch.bool) for row in labels] for _ in range(2)]
        for kind in range(2):
            for mask, index in zip(masks[kind], picked, strict=True):
                mask[index[kind]] = True
        return masks[0], masks[1]

    def pick(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of both."""
        first = positive.nonzero()[: self.positives, 0]
        return first, negative.nonzero()[: self.count - len(first), 0]


def main() -> int:
    """Compare, print the table, write it where asked; 1 when a number is missed."""
    options = parse()
    torch.set_num_threads(options.threads)
    photos = read_photos(options.data / "coco-photos", options.photos)
    lines, faults = [], []
    for name in options.models:
        started = time.monotonic()
        row, wrong = compare(name, photos, options)
        lines += row
        faults += wrong
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        finish(report(lines, faults, photos), options.out)  # after each: a run takes long and may be cut short
    return 1 if faults else 0


def compare(
    name: str, photos: Sequence[Photo], options: argparse.Namespace
) -> tuple[list[tuple[object, ...]], list[str]]:
    """The table's rows of one model, and what misses the numbers."""
    names = [str(i) for i in range(80)]
    sizes = {"min_size": options.size, "max_size": round(options.size * 1333 / 800)} if options.size else {}
    sample = [torch.from_numpy(p.image).permute(2, 0, 1).float() / 255 for p in photos]
    build = getattr(detection, name.replace("faster_rcnn", "fasterrcnn"))
    theirs = calibrated(build, len(names), sample, seed=options.seed, **sizes)
    ours = Detector.from_state_dict(
        theirs.state_dict(),
        source="torchvision",
        model=name,
        names=names,
        device="cpu",
        **({"size": sizes["min_size"], "max_size": sizes["max_size"]} if sizes else {}),
    )
    rows, faults = [], []
    for batch in options.batch if "float32" in options.arithmetic else ():
        worst = max(relative_losses(theirs, ours, group) for group in groups(photos, batch))
        if worst > LOSS:
            faults.append(f"{name}, batch {batch}: a loss differs by {worst:.1e}")
        tally = agreement(theirs, photos, batch, lambda group: our_detections(ours.model, group))
        faults += [f"{name}, float32, batch {batch}: {fault}" for fault in tally.faults()]
        rows.append(row(name, "float32", batch, tally, f"{worst:.1e}"))
    if "itself" in options.arithmetic:
        # How far rounding alone goes: the same network, torchvision's own, with its memory in another order.
        itself = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
        tally = agreement(theirs, photos, 1, lambda group: their_detections(itself, group))
        rows.append(row(name, "float32, torchvision beside itself, channels last", 1, tally, ""))
    if "float64" in options.arithmetic:
        double, model = copy.deepcopy(theirs).double(), in_float64(ours.model)
        for batch in options.batch:
            tally = agreement(double, photos, batch, lambda group: our_detections(model, group))
            faults += [f"{name}, float64, batch {batch}: {fault}" for fault in tally.faults()]
            rows.append(row(name, "float64", batch, tally, ""))
    return rows, faults


def agreement(
    theirs: nn.Module, photos: Sequence[Photo], batch: int, detect: Callable[[Sequence[Photo]], list[Found]]
) -> Tally:
    """torchvision's detections beside those that `detect` finds, so many photos at a time."""
    tally = Tally()
    for group in groups(photos, batch):
        for photo, expected, found in zip(group, their_detections(theirs, group), detect(group), strict=True):
            tally.add(photo.name, expected, found)
    return tally


@torch.inference_mode()
def their_detections(model: nn.Module, group: Sequence[Photo]) -> list[Found]:
    """torchvision's, with classes counted from 0."""
    dtype = next(model.parameters()).dtype
    found = model.eval()([torch.from_numpy(p.image).permute(2, 0, 1).to(dtype) / 255 for p in group])
    return [Found(f["boxes"], f["scores"], f["labels"] - 1) for f in found]


@torch.inference_mode()
def our_detections(model: TwoStage, group: Sequence[Photo]) -> list[Found]:
    """twostage's."""
    dtype = next(model.parameters()).dtype
    images = [model.config.image.resizing(torch.from_numpy(p.image).permute(2, 0, 1).to(dtype) / 255) for p in group]
    originals = Originals.of([p.image.shape[:2] for p in group], model.config.image.resizing)
    batch = stack_images(images, divisor=model.config.image.divisor, originals=originals)
    found = model.eval()(batch)
    arrays = to_arrays(found, batch, model.config)
    return [Found(*(torch.from_numpy(one[key]) for key in ("boxes", "scores", "class_ids"))) for one in arrays]


@torch.no_grad()
def relative_losses(theirs: nn.Module, ours: Detector, group: Sequence[Photo]) -> float:
    """The largest relative difference among the four losses on the same sampled anchors and regions.

    Regions are drawn from torchvision's proposals in both: a tie between two of ours may fall the other way, and the
    first 512 of them would then hold another box.
    """
    anchors, regions = FirstOfEach(256, 128), FirstOfEach(512, 128)
    training(theirs)
    theirs.rpn.fg_bg_sampler = anchors.for_torchvision
    theirs.roi_heads.fg_bg_sampler = regions.for_torchvision
    proposed: list[list[Tensor]] = []
    hook = theirs.rpn.register_forward_hook(lambda _rpn, _inputs, output: proposed.append(output[0]))
    expected = theirs(
        [torch.from_numpy(p.image).permute(2, 0, 1).float() / 255 for p in group],
        [{"boxes": p.boxes, "labels": p.labels + 1} for p in group],
    )
    hook.remove()
    model = training(ours.model)
    batch = make_batch([p.image for p in group], model.config)
    scale = batch.sizes.float() / torch.tensor([p.image.shape[:2] for p in group], dtype=torch.float32)
    boxes = [p.boxes * s.flip(0).repeat(2) for p, s in zip(group, scale, strict=True)]
    targets = stack_targets(boxes, [p.labels for p in group], seeds=[0] * len(group))
    maps = model.features(batch)
    stages = Proposed(maps, model.rpn(maps, batch.canvas, batch.sizes), padded(proposed[0]))
    losses = model.losses(stages, batch.sizes, targets, Samplers(anchors, regions))
    pairs = {"rpn_class": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "class": "loss_classifier"}
    pairs["box"] = "loss_box_reg"
    return max(abs(float(losses[a] / expected[b]) - 1) for a, b in pairs.items())


def padded(boxes: Sequence[Tensor]) -> Proposals:
    """Boxes of each image as proposals, best first."""
    rows = nn.utils.rnn.pad_sequence(list(boxes), batch_first=True)
    valid = torch.arange(rows.shape[1]) < torch.tensor([[len(b)] for b in boxes])
    nothing = torch.zeros(valid.shape)
    return Proposals(rows, nothing, nothing.long(), valid, torch.zeros(len(valid), dtype=torch.bool))


def training(model: nn.Module) -> nn.Module:
    """Training mode with BatchNorm's statistics as they are."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def read_photos(folder: Path, count: int) -> list[Photo]:
    """Photos of as many different sizes as there are, with their objects."""
    content = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    order = {category["id"]: i for i, category in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation["iscrowd"] and min(annotation["bbox"][2:]) > 0:
            objects[annotation["image_id"]].append(annotation)
    by_size = {(i["height"], i["width"]): i for i in reversed(content["images"]) if objects[i["id"]]}
    photos = []
    for image in islice(by_size.values(), count):
        boxes = torch.tensor([a["bbox"] for a in objects[image["id"]]], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([order[a["category_id"]] for a in objects[image["id"]]])
        photos.append(Photo(image["file_name"], read_image(folder / "images" / image["file_name"]), boxes, labels))
    return photos


def groups(photos: Sequence[Photo], size: int) -> Iterator[Sequence[Photo]]:
    """The photos, so many at a time."""
    for start in range(0, len(photos), size):
        yield photos[start : start + size]


HEADER = (
    "model",
    "arithmetic",
    "batch",
    "photos",
    "detections",
    "fewest distinct",
    "same, in order",
    "ties swapped",
    "ties at the end",
    "box median, px",
    "box max, px",
    "score max",
    "losses, relative",
)


def row(name: str, arithmetic: str, batch: int, tally: Tally, losses: str) -> tuple[object, ...]:
    """One line of the table."""
    return (
        name,
        arithmetic,
        batch,
        tally.photos,
        tally.detections,
        tally.fewest_distinct,
        len(tally.scores) - tally.swapped,
        tally.swapped,
        tally.at_the_edge,
        f"{median(tally.pixels or [math.nan]):.1e}",
        f"{max(tally.pixels, default=math.nan):.1e}",
        f"{max(tally.scores, default=math.nan):.1e}",
        losses,
    )


def report(lines: Sequence[tuple[object, ...]], faults: Sequence[str], photos: Sequence[Photo]) -> str:
    """The result as Markdown."""
    shapes = sorted({p.image.shape[:2] for p in photos})
    return "\n".join(
        [
            "# Parity with torchvision",
            "",
            f"`python benchmarks/parity.py {' '.join(sys.argv[1:])}`: {len(photos)} photos in {len(shapes)} sizes. "
            "Wanted: the same "
            f"detections in the same order (scores closer than {SCORE_TIE:g} may swap, or fall off the end at {MOST}), "
            f"boxes within {MEDIAN_PX:g} px in the median and {MAX_PX:g} px at most, losses within {LOSS:g}.",
            "",
            hardware(),
            "",
            table(HEADER, lines),
            "",
            *([f"- {fault}" for fault in faults] or ["All of these reached."]),
        ]
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.environ.get("TWOSTAGE_DATA")
    parser.add_argument("--data", type=Path, default=Path(root) / "data" if root else None)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--arithmetic", nargs="+", default=("float32",), choices=("float32", "float64", "itself"))
    parser.add_argument("--size", type=int, help="shortest side instead of the models' own, for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data is needed, or TWOSTAGE_DATA set to the folder that holds data/coco-photos")
    return options


if __name__ == "__main__":
    sys.exit(main())
