"""Does simple-faster-rcnn-pytorch's detector find the same after it is converted?

    python benchmarks/import_parity_simple.py FOLDER [--images N] [--out benchmarks/results]

FOLDER is a checkout of it; scikit-image and six have to be installed. Its own code resizes, predicts and suppresses,
with `Tensor.cuda`, which it calls throughout, made to do nothing. The VGG16 has random weights, each layer spread out
on a photo (`import_parity.spread_out`), and is saved as its trainer saves it, of torchvision's images and Caffe's.
twostage converts the file and predicts as `Detector.predict` does, one photo at a time: the project takes no batch.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import finish, hardware, table
from import_parity import HEADER, Arrays, choose_photos, faults_of, gather, our_arrays, row, spread_out
from parity import Photo
from torch import Tensor, nn

import twostage
from twostage import Detector
from twostage.parity.agreement import FLOAT32, agreement
from twostage.parity.diagnosis import only
from twostage.weights.convert import convert, read_foreign

CLASSES = 20
# Standard deviation and mean of the outputs of a layer, of all others 1 and 0. Larger scores of anchors would be 1 in
# float32 and tie, of which the project takes the last one first.
SPREADS = {"rpn.score": (0.5, 0.0), "rpn.loc": (0.1, 0.0), "head.score": (2.0, 0.0), "head.cls_loc": (0.5, 0.0)}


def main() -> int:
    """Compare both kinds, print the table and write it; 1 when a number is missed."""
    options = parse()
    sys.path.insert(0, str(Path(options.given).resolve()))
    Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    photos = choose_photos(options.data / "coco-photos", options.images)
    lines, faults = [], []
    for caffe in (False, True):
        name = "caffe_pretrain" if caffe else "torchvision's images"
        line, wrong = compare(name, photos, options.seed, caffe=caffe)
        lines.append(line)
        faults += wrong
    finish(report(lines, faults, options), options.out / "import_parity_simple.md")
    return 1 if faults else 0


@torch.no_grad()
def compare(name: str, photos: Sequence[Photo], seed: int, *, caffe: bool) -> tuple[list[object], list[str]]:
    """The table's row of one kind, and what misses the numbers."""
    from data.dataset import preprocess  # type: ignore[import-not-found]
    from model import FasterRCNNVGG16  # type: ignore[import-not-found]
    from utils.config import opt  # type: ignore[import-not-found]

    opt.caffe_pretrain, opt.load_path = caffe, "none is fetched"
    torch.manual_seed(seed)
    original = _without_download(FasterRCNNVGG16).eval()
    _spread(original, preprocess(photos[0].image.transpose(2, 0, 1).astype(np.float32)))
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "fasterrcnn", Path(folder) / "ours.safetensors"
        torch.save({"model": original.state_dict(), "config": opt._state_dict(), "other_info": {}}, path)
        started = time.monotonic()
        converted = convert(read_foreign(path), out, names=[str(k) for k in range(CLASSES)])
        seconds = time.monotonic() - started
        detector = Detector.load(out, device="cpu", choose_forms=False)

    def theirs(group: Sequence[Photo]) -> list[Arrays]:
        images = [photo.image.transpose(2, 0, 1).astype(np.float32) for photo in group]
        found = original.predict([preprocess(image) for image in images], [image.shape[1:] for image in images])
        return [
            {"boxes": boxes[:, [1, 0, 3, 2]], "scores": scores, "class_ids": labels, "masks": None}
            for boxes, labels, scores in zip(*found, strict=True)
        ]

    groups = [[photo] for photo in photos]
    expected = gather(groups, theirs)
    found = gather(groups, lambda group: our_arrays(detector, group))
    postprocess = detector.model.config.postprocess
    faults = []
    for place, photo in enumerate(photos):
        one = only(expected, place)
        wrong = faults_of(agreement(one, only(found, place), 1, postprocess), one)
        faults += [f"{name}, {photo.name}: {fault}" for fault in wrong]
    whole = agreement(expected, found, len(photos), postprocess)
    return row(name, converted.card.model, expected, whole, f"{seconds:.1f}"), faults


def _without_download(build: Any) -> nn.Module:
    """A model for which torchvision fetches no classifier."""
    import model.faster_rcnn_vgg16 as module  # type: ignore[import-not-found]
    from torchvision.models import vgg16

    module.vgg16 = lambda *_, **__: vgg16()
    return build(n_fg_class=CLASSES)


def _spread(original: Any, image: np.ndarray) -> None:
    """Spread each layer out on its own input, just before its first call."""
    handles = []
    for name, layer in original.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std, mean = SPREADS.get(name, (1.0, 0.0))

            def act(module: nn.Module, inputs: tuple[Tensor, ...], std: float = std, mean: float = mean) -> None:
                spread_out(module, inputs, std, mean)

            handles.append(layer.register_forward_pre_hook(act))
    original(torch.from_numpy(image[None]).float())
    for handle in handles:
        handle.remove()


def report(lines: Sequence[Sequence[object]], faults: Sequence[str], options: argparse.Namespace) -> str:
    """The result as Markdown."""
    words = ["FOLDER" if word == str(options.given) else word for word in sys.argv[1:]]
    done = subprocess.run(
        ["git", "-C", options.given, "log", "-1", "--format=%h of %cs"], capture_output=True, text=True
    )
    version = done.stdout.strip() or "a copy without its history"
    return "\n".join(
        [
            "# Parity with simple-faster-rcnn-pytorch",
            "",
            f"`python benchmarks/import_parity_simple.py {shlex.join(words)}`: its own code beside the converted file, "
            f"{options.images} photos one at a time, random weights spread out on the first. Wanted: every detection "
            f"has its partner, boxes within {FLOAT32.pixels:g} px, scores within {FLOAT32.scores:g}.",
            "",
            f"{hardware()}, twostage {twostage.__version__}, simple-faster-rcnn-pytorch ({version})",
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
    parser.add_argument("given", metavar="FOLDER", help="a checkout of simple-faster-rcnn-pytorch")
    parser.add_argument("--data", type=Path, default=Path(root) / "data" if root else None)
    parser.add_argument("--images", type=int, default=4, help="photos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="the folder of the table")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data is needed, or TWOSTAGE_DATA set to the folder that holds data/coco-photos")
    if not (Path(options.given) / "model" / "faster_rcnn_vgg16.py").is_file():
        parser.error(f"{options.given} is no checkout of simple-faster-rcnn-pytorch")
    return options


if __name__ == "__main__":
    sys.exit(main())
