"""Do the detectors of detectron2's zoo find the same after they are converted?

    python benchmarks/import_parity.py FOLDER [--configs NAME ...] [--images N] [--out benchmarks/results]

FOLDER is a checkout of detectron2. Nothing of it is compiled, but its dependencies (fvcore, iopath, omegaconf, ...)
have to be installed. Each model is built by detectron2 itself with random weights, calibrated on a photo (see
`_calibrated` for why), and written as the zoo's files are: a plain pickle of arrays, and the configuration as
`config.yaml`. Both go through `twostage.weights.convert`. Then detectron2 predicts in photos as its DefaultPredictor
does, twostage as `Detector.predict` does; one photo at a time, and three on a canvas. Where a number is missed,
detectron2 also runs beside itself with its memory in another order, which tells how far rounding alone goes.
"""

import argparse
import copy
import importlib
import math
import os
import pickle
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from _calibrated import BOX_DELTAS, CLASSES, MASKS, OBJECTNESS, RESIDUAL, RPN_DELTAS, SIDE
from _timing import finish, hardware, table
from parity import Photo, read_photos
from torch import Tensor, nn

import twostage
from twostage import Detector
from twostage.errors import TwostageError
from twostage.evaluation.results import Accumulator, Results
from twostage.inference.predictor import predict_arrays
from twostage.ops.masks import encode
from twostage.parity.agreement import FLOAT32, Agreement, Spread, agreement
from twostage.parity.diagnosis import only
from twostage.weights.convert import convert, read_foreign

CONFIGS = (
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x",
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x",
    "COCO-Detection/retinanet_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic",
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn",
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn",
)
TOGETHER = 3  # photos on one canvas
FEWEST, DISTINCT = 20, 5  # detections of a photo, and their classes: fewer prove nothing
# Standard deviation and mean of the outputs of a layer, by its name; the first that fits.
SPREADS = (
    (r"objectness_logits$", OBJECTNESS),
    (r"anchor_deltas$", RPN_DELTAS),
    (r"^roi_heads.*cls_score$", CLASSES),
    (r"^roi_heads.*bbox_pred$", BOX_DELTAS),
    # The best of millions of logits lie ten and more deviations out: with a larger one their scores are 1.
    (r"^head\.cls_score$", (0.5, -4.0)),
    (r"^head\.bbox_pred$", RPN_DELTAS),
    (r"mask_head\.predictor$", MASKS),
    (r"", (1.0, 0.0)),
)
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
HEADER = (
    "configuration",
    "model of ours",
    "photos",
    "detections",
    "classes",
    "matched",
    "at the edge",
    "box max, px",
    "box median, px",
    "score max",
    "score median",
    "mask max",
    "mask median",
    "convert, s",
)


class Original(NamedTuple):
    """A model of detectron2 and its configuration (a CfgNode)."""

    config: Any
    model: nn.Module

    def predict(self, photos: Sequence[Photo]) -> list[Any]:
        """Its Instances in photos on one canvas, by the steps of its DefaultPredictor."""
        least, most = self.config.INPUT.MIN_SIZE_TEST, self.config.INPUT.MAX_SIZE_TEST
        return self.predict_at(photos, least, most)

    def predict_at(self, photos: Sequence[Photo], least: int, most: int) -> list[Any]:
        """The same with another shorter and longer side."""
        resize = of_detectron2("data.transforms").ResizeShortestEdge([least, least], most)
        inputs = []
        for photo in photos:
            pixels = photo.image if self.config.INPUT.FORMAT == "RGB" else photo.image[:, :, ::-1]
            small = resize.get_transform(pixels).apply_image(pixels)
            image = torch.as_tensor(small.astype("float32").transpose(2, 0, 1))
            inputs.append({"image": image, "height": pixels.shape[0], "width": pixels.shape[1]})
        with torch.no_grad():
            return [found["instances"] for found in self.model(inputs)]


def main() -> int:
    """Compare, print the table and write it after each configuration; 1 when a number is missed."""
    options = parse()
    sys.path.insert(0, str(options.folder.resolve()))
    if options.threads:
        torch.set_num_threads(options.threads)
    photos = choose_photos(options.data / "coco-photos", max(options.images, TOGETHER))
    lines: list[list[object]] = []
    faults: list[str] = []
    for name in options.configs:
        started = time.monotonic()
        rows, wrong = compare(name, photos, options)
        lines += rows
        faults += wrong
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        finish(report(lines, faults, options), options.out / "import_parity.md")
    return 1 if faults else 0


def compare(name: str, photos: Sequence[Photo], options: argparse.Namespace) -> tuple[list[list[object]], list[str]]:
    """The table's rows of one configuration, and what misses the numbers."""
    original = build(options.folder / "configs" / f"{name}.yaml", options.seed)
    calibrate(original, photos[0])
    with tempfile.TemporaryDirectory() as folder:
        path, config, out = (Path(folder) / file for file in ("model_final.pkl", "config.yaml", "ours.safetensors"))
        write_zoo(original, path, config)
        started = time.monotonic()
        try:
            converted = convert(read_foreign(path, None, config), out, names=[str(i) for i in range(80)])
        except TwostageError as error:
            return [[name, "not converted", *[""] * (len(HEADER) - 2)]], [
                f"{name}: {str(error).removeprefix(f'{path}: ')}"
            ]
        seconds = time.monotonic() - started
        detector = Detector.load(out, device="cpu", choose_forms=False)
    # One at a time, then together; an image of the results is one of these views.
    groups = [*([photo] for photo in photos[: options.images]), list(photos[:TOGETHER])]
    expected = gather(groups, lambda group: their_arrays(original, group))
    found = gather(groups, lambda group: our_arrays(detector, group))
    views = [photo.name + (f", one of {len(group)}" if len(group) > 1 else "") for group in groups for photo in group]
    postprocess = detector.model.config.postprocess
    whole = agreement(expected, found, len(views), postprocess)
    rows = [row(name, converted.card.model, expected, whole, f"{seconds:.1f}")]
    faults = []
    for place, view in enumerate(views):
        one, of_image = only(expected, place), only(found, place)
        wrong = faults_of(agreement(one, of_image, 1, postprocess), one)
        faults += [f"{name}, {view}: {fault}" for fault in wrong]
    if faults:
        other = Original(original.config, copy.deepcopy(original.model).to(memory_format=torch.channels_last))
        again = gather(groups, lambda group: their_arrays(other, group))
        itself = agreement(expected, again, len(views), postprocess)
        rows.append(row(name, "detectron2 beside itself, channels last", expected, itself, ""))
    return rows, faults


def of_detectron2(module: str) -> Any:
    """A module of the checkout, which is on the path only once the command line is read."""
    return importlib.import_module(f"detectron2.{module}")


def build(path: Path, seed: int) -> Original:
    """A model of the zoo with random weights, on the CPU."""
    config = of_detectron2("config").get_cfg()
    config.merge_from_file(str(path))
    config.MODEL.DEVICE = "cpu"
    torch.manual_seed(seed)
    return Original(config, of_detectron2("modeling").build_model(config.clone()).eval())


@torch.no_grad()
def calibrate(original: Original, photo: Photo) -> None:
    """Statistics for the normalisations and a spread for each layer with a bias, during one prediction.

    Each takes them from its own input just before its first call, when all that runs before it is in place. A layer
    that works on several maps keeps those of the first, but for RetinaNet's towers (`spread_towers`).
    """
    left = set()

    def at_first_call(name: str, module: nn.Module, act: Callable[[Any], None]) -> None:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            handle.remove()
            left.remove(name)
            act(inputs[0])

        left.add(name)
        handle = module.register_forward_pre_hook(hook)

    towers = getattr(original.model, "head", None)
    if towers is not None:
        at_first_call("head", towers, lambda maps: spread_towers(towers, maps))
    norms = (nn.modules.batchnorm._BatchNorm, of_detectron2("layers").FrozenBatchNorm2d)
    for name, module in original.model.named_modules():
        if isinstance(module, norms):
            at_first_call(name, module, lambda x, module=module: standardise(module, x))
        elif isinstance(module, LAYERS) and module.bias is not None and not name.startswith("head."):
            wanted = wanted_of(name)
            at_first_call(name, module, lambda x, module=module, wanted=wanted: spread_out(module, [x], *wanted))
        elif type(module).__name__ == "BottleneckBlock":
            cast(Any, module).conv3.norm.weight.fill_(RESIDUAL)
    original.predict_at([photo], SIDE, 2 * SIDE)
    if left:
        raise RuntimeError(f"the photo did not reach {len(left)} layers: {', '.join(sorted(left)[:3])} ...")


def standardise(norm: Any, x: Tensor) -> None:
    """Set the statistics of a batch normalisation to those of its input."""
    norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(x.var(dim=(0, 2, 3)).clamp(min=1e-6))


def spread_towers(head: Any, maps: Sequence[Tensor]) -> None:
    """Spread RetinaNet's towers over all maps at once.

    One map alone does not tell how far the five layers go on the others, where features vary otherwise from place to
    place.
    """
    for tower, last in (("cls_subnet", "cls_score"), ("bbox_subnet", "bbox_pred")):
        seen = list(maps)
        for layer in (*getattr(head, tower), getattr(head, last)):
            if isinstance(layer, LAYERS):
                spread_out(layer, seen, *wanted_of(f"head.{last}" if layer is getattr(head, last) else ""))
            seen = [layer(x) for x in seen]


def wanted_of(name: str) -> tuple[float, float]:
    """The standard deviation and the mean for a layer."""
    return next(spread for pattern, spread in SPREADS if re.search(pattern, name))


def spread_out(layer: Any, inputs: Sequence[Tensor], std: float, mean: float) -> None:
    """Scale and shift a layer so that each of its outputs has this standard deviation and mean; inputs weigh alike."""
    # The forward of torch's class: detectron2's own layers also normalise and activate.
    kind: Any = next(kind for kind in LAYERS if isinstance(layer, kind))
    seen = [kind.forward(layer, x).movedim(1, -1).flatten(0, -2) for x in inputs]
    means = torch.stack([y.mean(dim=0) for y in seen])
    squares = torch.stack([y.var(dim=0) for y in seen]) + (means - means.mean(dim=0)).square()
    scale = std / squares.mean(dim=0).sqrt().clamp(min=1e-6)
    outputs = (1, -1, 1, 1) if kind is nn.ConvTranspose2d else (-1, *[1] * (layer.weight.ndim - 1))
    layer.weight.mul_(scale.view(outputs))
    layer.bias.sub_(means.mean(dim=0)).mul_(scale).add_(mean)


def write_zoo(original: Original, path: Path, config: Path) -> None:
    """The weights and the configuration as the zoo has them."""
    arrays = {name: tensor.numpy() for name, tensor in original.model.state_dict().items()}
    content = {"model": arrays, "__author__": "import_parity.py", "matching_heuristics": False}
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=2)
    config.write_text(original.config.dump(), encoding="utf-8")


Arrays = dict[str, Any]


def gather(groups: Sequence[Sequence[Photo]], predict: Callable[[Sequence[Photo]], list[Arrays]]) -> Results:
    """The detections of every view, those of one group on one canvas."""
    gathered = Accumulator()
    for place, one in enumerate(chain.from_iterable(predict(group) for group in groups)):
        gathered.add(place, one["boxes"], one["scores"], one["class_ids"], one["masks"])
    return gathered.results()


def their_arrays(original: Original, photos: Sequence[Photo]) -> list[Arrays]:
    """detectron2's detections."""
    return [
        {
            "boxes": found.pred_boxes.tensor.numpy(),
            "scores": found.scores.numpy(),
            "class_ids": found.pred_classes.numpy(),
            "masks": encode(found.pred_masks.numpy()) if found.has("pred_masks") else None,
        }
        for found in original.predict(photos)
    ]


def our_arrays(detector: Detector, photos: Sequence[Photo]) -> list[Arrays]:
    """twostage's, as `Detector.predict` computes them, all photos on one canvas."""
    with torch.inference_mode():
        return predict_arrays(detector.prepared, [photo.image for photo in photos])


def faults_of(found: Agreement, expected: Results) -> list[str]:
    """What misses the numbers to reach in one view."""
    faults = []
    alone = found.expected + found.found - 2 * found.matched - found.at_the_edge
    if alone:
        faults.append(f"{found.expected} and {found.found} detections, {alone} of them without a partner")
    for what, spread, most, unit in (
        ("box", found.pixels, FLOAT32.pixels, " px"),
        ("score", found.scores, FLOAT32.scores, ""),
        ("mask", found.masks or Spread(0.0, 0.0), FLOAT32.masks, " of its pixels"),
    ):
        if spread.largest > most:
            faults.append(f"a {what} differs by {spread.largest:.1e}{unit} (median {spread.median:.1e})")
    classes = len(np.unique(expected.class_ids))
    if found.expected < FEWEST or classes < DISTINCT:
        faults.append(f"{found.expected} detections of {classes} classes prove nothing")
    return faults


def row(name: str, model: str, expected: Results, found: Agreement, seconds: str) -> list[object]:
    """One line of the table."""
    masks = found.masks or Spread(math.nan, math.nan)
    spreads = [value for spread in (found.pixels, found.scores, masks) for value in spread]
    return [
        name,
        model,
        found.images,
        found.expected,
        len(np.unique(expected.class_ids)),
        found.matched,
        found.at_the_edge,
        *("" if math.isnan(value) else f"{value:.1e}" for value in spreads),
        seconds,
    ]


def choose_photos(folder: Path, count: int) -> list[Photo]:
    """Photos of different sizes, wide and tall ones in turn."""
    photos = read_photos(folder, sys.maxsize)
    wide = [photo for photo in photos if photo.image.shape[0] < photo.image.shape[1]]
    tall = [photo for photo in photos if photo.image.shape[0] > photo.image.shape[1]]
    chosen = [*chain.from_iterable(zip(wide, tall, strict=False))][:count]
    if len(chosen) < count:
        raise SystemExit(f"{folder}: {len(chosen)} photos, wide and tall in turn; {count} are needed.")
    return chosen


def report(lines: Sequence[Sequence[object]], faults: Sequence[str], options: argparse.Namespace) -> str:
    """The result as Markdown."""
    # The folder is this machine's affair.
    words = ["FOLDER" if word == str(options.given) else word for word in sys.argv[1:]]
    wanted = (
        f"Wanted: every detection has its partner, but for those within {FLOAT32.scores:g} of where a list ends; boxes "
        f"within {FLOAT32.pixels:g} px, scores within {FLOAT32.scores:g}, masks within {FLOAT32.masks:g} of their "
        "pixels."
    )
    return "\n".join(
        [
            "# Parity with detectron2's zoo",
            "",
            f"`python benchmarks/import_parity.py {shlex.join(words)}`: {options.images} photos one at a time and "
            f"{TOGETHER} on one canvas, through one converted file of random, calibrated weights. {wanted}",
            "",
            f"{hardware()}, twostage {twostage.__version__}, detectron2 {version(options.folder)}",
            "",
            table(HEADER, lines),
            "",
            *([f"- {fault}" for fault in faults] or ["All of these reached."]),
        ]
    )


def version(folder: Path) -> str:
    """detectron2's version, and the commit if the folder is a checkout."""
    done = subprocess.run(["git", "-C", folder, "log", "-1", "--format=%h of %cs"], capture_output=True, text=True)
    return importlib.import_module("detectron2").__version__ + (f" ({done.stdout.strip()})" if done.stdout else "")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.environ.get("TWOSTAGE_DATA")
    parser.add_argument("given", metavar="FOLDER", help="a checkout of detectron2")
    parser.add_argument("--data", type=Path, default=Path(root) / "data" if root else None)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="NAME", help="such as Misc/NAME of configs/")
    parser.add_argument("--images", type=int, default=2, help="photos that go through both one at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="the folder of the table")
    options = parser.parse_args()
    options.folder = Path(options.given)
    if options.data is None:
        parser.error("--data is needed, or TWOSTAGE_DATA set to the folder that holds data/coco-photos")
    if not (options.folder / "configs").is_dir():
        parser.error(f"{options.folder} is no checkout of detectron2: it has no folder configs")
    return options


if __name__ == "__main__":
    sys.exit(main())
