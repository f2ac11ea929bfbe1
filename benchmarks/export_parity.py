"""Every family exported for every runtime: whether its certificate holds, at three batch sizes and five image sizes.

    python benchmarks/export_parity.py --out benchmarks/results

The zoo's heads on tiny networks, and other backbones where a family has them; random weights, drawn so that scores and
boxes differ. Five photos, stretched to five sizes, one, two and five on a canvas, and an image that is crowded with
them. The certificate: every detection has its partner within a hundredth of a pixel and 1e-4 of its score.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _pictures import photo_files, whence
from _rows import read_rows, write_rows
from _timing import table
from PIL import Image
from torch import nn

from twostage import Detector
from twostage.export.proof import Example, Rule, examples_of, prove
from twostage.export.write import FILES, Form, Source, write
from twostage.inference.exported import ExportedModel
from twostage.models.heads.mask import ClassSpecificLinear
from twostage.parity.certificate import Compared
from twostage.weights.file import load_weights

MODELS = (
    *("faster_rcnn_tiny", "faster_rcnn_tiny_fpn", "fast_rcnn_tiny", "mask_rcnn_tiny_fpn", "cascade_rcnn_tiny_fpn"),
    *("cascade_mask_rcnn_tiny_fpn", "hybrid_task_cascade_tiny_fpn", "retinanet_tiny_fpn", "faster_rcnn_lite0_fpn"),
    *("faster_rcnn_resnet18_fpn", "mask_rcnn_resnet18_fpn", "retinanet_resnet18_fpn", "faster_rcnn_resnet50_c4"),
    *("faster_rcnn_resnet50_dc5", "faster_rcnn_mobilenet_v3_large_320_fpn", "faster_rcnn_zf", "faster_rcnn_vgg16"),
)
TITLES = ("model", "runtime", "certificate", "detections", "at the edge", "boxes, px", "scores", "file, MB", "s")
ABOUT = __doc__.split("\n\n", 2)[2].strip().replace("\n", " ")
SHAPES = ((240, 320), (333, 250), (181, 277), (300, 300), (140, 400))
BATCHES = (1, 2, 5)
NAMES = ["cat", "dog", "bird"]
FIELDS = {"size": 240, "max_size": 400, "max_det": 50}


def lively(name: str) -> Detector:
    """A detector with weights large enough for scores and boxes to differ from each other."""
    torch.manual_seed(0)
    # The head of C4 reads 1024 channels of every region: a thousand of five images take all memory.
    of_c4 = {"roi_max_samples": None, "rpn_keep_test": 100}
    fields = {**FIELDS, **(of_c4 if "c4" in name or "dc5" in name else {})}
    detector = Detector.build(name, NAMES, device="cpu", **fields)
    with torch.no_grad():
        for place, module in detector.model.backbone.named_modules():
            if place.endswith(("bn2", "bn3")):  # residual branches weigh less than what they are added to
                module.weight.fill_(0.15)
        parts = [detector.model.head, *([detector.model.rpn] if detector.model.rpn is not None else [])]
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5)
            if isinstance(module, ClassSpecificLinear):  # masks whose cells are not all at the threshold
                module.weight.normal_()
    return detector


def examples() -> list[Example]:
    """Photos of the shapes, and the crowded image."""
    images = [
        np.array(Image.open(file).convert("RGB").resize(shape[::-1]))
        for file, shape in zip(photo_files(len(SHAPES)), SHAPES, strict=True)
    ]
    photos = [Example(image, Compared.of_pixels("photo", image)) for image in images]
    return [*photos, examples_of(None)[-1]]


def of_model(name: str, seen: list[Example]) -> list[dict[str, str]]:
    """A row of the table for every runtime."""
    detector, rows = lively(name), []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        detector.save(weights)
        source = Source(detector, load_weights(weights)[0], weights)
        for format in FILES:
            begun = time.perf_counter()
            path = write(source, Path(folder), Form(format)).path
            seconds = time.perf_counter() - begun
            exported = ExportedModel.open(path)
            certificate = prove(weights, detector.prepared, exported, seen, Rule(), BATCHES)
            every = certificate.agreement.values()
            row = [name, exported.runtime, "holds" if certificate.passed else "**differs**"]
            row += [f"{sum(each.matched for each in every)} of {sum(each.expected for each in every)}"]
            row += [f"{sum(each.at_the_edge for each in every)}", f"{max(each.pixels.largest for each in every):.1e}"]
            row += [f"{max(each.scores.largest for each in every):.1e}", f"{path.stat().st_size / 1e6:.1f}"]
            rows.append(dict(zip(TITLES, [*row, f"{seconds:.0f}"], strict=True)))
            print(*rows[-1].values(), flush=True)
    return rows


def main() -> None:
    """Export, compare and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--out", type=Path, help="folder for export_parity.md and .json; what it has is not run again")
    given = parser.parse_args()
    seen, rows = examples(), read_rows(given.out, "export_parity")
    for name in given.models:
        if name not in (row["model"] for row in rows):
            rows += of_model(name, seen)
            if given.out:
                held = sum(row["certificate"] == "holds" for row in rows)
                about = f"{ABOUT} {whence()} `s`: seconds of the export. {held} of {len(rows)} certificates hold."
                shown = table(list(TITLES), [list(row.values()) for row in rows])
                write_rows(given.out, "export_parity", rows, "Exported detectors beside their models", about, shown)


if __name__ == "__main__":
    main()
