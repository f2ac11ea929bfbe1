"""Exported detectors beside torchvision's in eager float32: ResNet-50 with a pyramid, photos stretched to 800 x 1066.

    python benchmarks/bench_export.py --out benchmarks/results/export.md

All start from the same float tensors and the same calibrated random weights (`_calibrated.py`), interleaved in one
process. int8 has ranges of twenty photos.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _pictures import photos
from _timing import compare, versus
from bench_inference import FASTER, SHAPE, agreement, found_by, found_by_peer, ours, peer

from twostage import Detector
from twostage.data.batch import stack_images
from twostage.export.openvino_file import openvino_model, save_openvino
from twostage.export.quantise import quantise_onnx, quantise_openvino
from twostage.export.write import Source, write
from twostage.inference.exported import ExportedModel
from twostage.inference.signature import inputs_of
from twostage.inference.standalone import KEY
from twostage.weights.file import load_weights


def exported(detector: Detector, folder: Path) -> dict[str, ExportedModel]:
    """The detector in every runtime and precision that this machine is built for."""
    weights = folder / "weights.safetensors"
    detector.save(weights)
    source = Source(detector, load_weights(weights)[0], weights)
    onnx = write(source, folder, "onnx")
    models = {"ONNX Runtime fp32": ExportedModel.open(onnx)}
    signature = models["ONNX Runtime fp32"].signature
    metadata = {KEY: json.dumps(models["ONNX Runtime fp32"].session.metadata)}
    batches = [stack_images([image]) for image in photos(SHAPE, 20)]
    calibration = [{name: x.numpy() for name, x in inputs_of(batch, signature).items()} for batch in batches]
    whole = openvino_model(onnx)
    for name, model in (("openvino", whole), ("openvino-int8", quantise_openvino(whole, calibration))):
        save_openvino(model, folder / f"{name}.xml", metadata)
    models["OpenVINO fp32"] = ExportedModel.open(folder / "openvino.xml")
    models["OpenVINO bf16"] = ExportedModel.open(folder / "openvino.xml", precision="bf16")
    models["OpenVINO int8"] = ExportedModel.open(folder / "openvino-int8.xml")
    quantise_onnx(onnx, folder / "int8.onnx", calibration)
    models["ONNX Runtime int8"] = ExportedModel.open(folder / "int8.onnx")
    return models


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    images = photos(SHAPE, 1)
    theirs = peer(FASTER, images)
    detector = ours(FASTER, theirs)
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Any] = {"twostage fp32": detector.prepared, **exported(detector, Path(folder))}
        cases: dict[str, Callable[[], object]] = {"torchvision": partial(found_by_peer, theirs, images)}
        cases |= {name: partial(found_by, model, images) for name, model in models.items()}
        times = compare(cases, repeats=given.repeats)
        rows = [versus(name, times[name], times["torchvision"]) for name in models]
        says = [f"{name}: {agreement(theirs, model, images)}" for name, model in models.items() if "fp32" in name]
    print(rows, says)


if __name__ == "__main__":
    main()
