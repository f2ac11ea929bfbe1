"""Exported detectors beside torchvision's in eager float32, and what their environment and their start cost.

    python benchmarks/bench_export.py --out benchmarks/results/export.md
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        python benchmarks/bench_export.py --out benchmarks/results/avx2/export.md

Faster R-CNN with ResNet-50 and a pyramid, photos stretched to 800 x 1066, batch 1: all start from the same tensors
and the same calibrated random weights (`_calibrated.py`), interleaved in one process. int8 has ranges of twenty photos.
The small model predicts whole files, read and decoded, by `Detector.predict` and, where the line says predict.py, by
the program beside the export, as many files at once as threads. Cold starts are whole processes, from the command to
the printed detections.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _pictures import photos, small_data, small_files, whence
from _timing import Times, arguments, compare, finish, hardware, limited, table, versus
from bench_inference import FASTER, SHAPE, agreement, found_by, found_by_peer, ours, peer

from twostage import Detector
from twostage.export.openvino_file import openvino_model, save_openvino
from twostage.export.quantise import quantised
from twostage.export.write import Form, Source, write
from twostage.inference.exported import ExportedModel
from twostage.inference.predictor import make_batch
from twostage.inference.runtimes import KEY, import_openvino
from twostage.inference.signature import inputs_of
from twostage.inference.standalone import Predictor, side_by_side
from twostage.weights.file import load_weights

SMALL = "faster_rcnn_lite0_fpn"


def exported(detector: Detector, folder: Path, images: list[Any]) -> dict[str, ExportedModel]:
    """The detector in every runtime and precision that this machine is built for; int8 has the ranges of the images.

    Where the process is limited to fewer instructions only OpenVINO in fp32 and int8: no variable limits ONNX Runtime,
    and OpenVINO fails in a precision that the processor has and the limit excludes.
    """
    import onnx

    weights = folder / "weights.safetensors"
    detector.save(weights)
    path = write(Source(detector, load_weights(weights)[0], weights), folder, Form()).path
    reference = ExportedModel.open(path)
    batches = [make_batch([image], detector.config) for image in images]
    ranges = [
        {name: x.contiguous().numpy() for name, x in inputs_of(batch, reference.signature).items()} for batch in batches
    ]
    models = {}
    if not limited():
        onnx.save(quantised(onnx.load(path), ranges), folder / "int8.onnx")
        models |= {"ONNX Runtime fp32": reference, "ONNX Runtime int8": ExportedModel.open(folder / "int8.onnx")}
    whole, metadata = openvino_model(path), {KEY: json.dumps(reference.session.metadata)}
    for name, model in (("fp32", whole), ("int8", quantised(whole, ranges))):
        save_openvino(model, folder / f"{name}.xml", metadata)
        models[f"OpenVINO {name}"] = ExportedModel.open(folder / f"{name}.xml")
    has_bf16 = "BF16" in import_openvino("").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if has_bf16 and not limited():
        models["OpenVINO bf16"] = ExportedModel.open(folder / "fp32.xml", precision="bf16")
    return models


def of_resnet50(folder: Path, repeats: int) -> tuple[list[list[str]], list[str]]:
    """Rows beside torchvision's, and what the detections say."""
    tensors = photos(SHAPE, 20)
    theirs = peer(FASTER, tensors[:1])
    detector = ours(FASTER, theirs)
    images = [(x.permute(1, 2, 0) * 255).byte().numpy() for x in tensors]
    models: dict[str, Any] = {"twostage fp32": detector.prepared, **exported(detector, folder, images)}
    some = tensors[:1]
    cases: dict[str, Callable[[], object]] = {"torchvision": partial(found_by_peer, theirs, some)}
    cases |= {name: partial(found_by, model, some) for name, model in models.items()}
    times = compare(cases, repeats=repeats)
    rows = [versus(name, times[name], times["torchvision"]) for name in models]
    return rows, [f"{name}: {agreement(theirs, models[name], tensors[:4])}" for name in models if "fp32" in name]


def of_small(folder: Path, repeats: int) -> list[list[str]]:
    """Files per second of the small model, decoding included."""
    files, data = small_files(48), small_data()
    detector = Detector.build(SMALL, data.names, device="cpu")
    images = [data.image(index) for index in range(20)]
    models = {"twostage fp32": detector, **exported(detector, folder, images)}
    detectors = {
        name: model if isinstance(model, Detector) else Detector(model, SMALL, data.names)
        for name, model in models.items()
    }
    threads = torch.get_num_threads()
    alone = {
        f"predict.py, {name}": Predictor(detectors[name].runner.path, threads=threads, at_once=threads)
        for name in ("ONNX Runtime fp32", "OpenVINO fp32", "OpenVINO int8")
        if name in detectors
    }
    cases: dict[str, Callable[[], object]] = {name: partial(_predict, each, files) for name, each in detectors.items()}
    cases |= {name: partial(_predict_alone, each, files, threads) for name, each in alone.items()}
    times = compare(cases, repeats=repeats)
    return [[name, f"{1e3 * len(files) / times[name].median:.1f}", _size(folder, name)] for name in cases]


def _predict(detector: Detector, files: list[Path]) -> int:
    return sum(len(found) for found in detector.predict(files, conf=0.5))


def _predict_alone(predictor: Predictor, files: list[Path], at_once: int) -> int:
    predict = partial(predictor.predict, conf=0.5)
    return sum(len(found.result()["scores"]) for found in side_by_side(predict, files, at_once))


def _size(folder: Path, name: str) -> str:
    if "twostage" in name:
        return f"{(folder / 'weights.safetensors').stat().st_size / 1e6:.1f}"
    if "ONNX" in name:
        return f"{(folder / ('int8.onnx' if 'int8' in name else 'model.onnx')).stat().st_size / 1e6:.1f}"
    return f"{(folder / ('int8.bin' if 'int8' in name else 'fp32.bin')).stat().st_size / 1e6:.1f}"


def of_start(folder: Path, repeats: int) -> list[list[str]]:
    """Whole processes from the command to the detections of one file."""
    photo, weights = str(small_files(1)[0]), str(folder / "weights.safetensors")
    commands = {
        "twostage predict, with torch": [sys.executable, "-m", "twostage", "predict", photo, "--weights", weights],
        "predict.py, ONNX Runtime": [sys.executable, str(folder / "predict.py"), photo],
        "predict.py, OpenVINO": [
            *(sys.executable, str(folder / "predict.py"), photo, "--model", str(folder / "fp32.xml")),
        ],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats + 1):
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken[name].append(1e3 * (time.perf_counter() - begun))
    times = {name: Times(statistics.median(each[1:]), min(each[1:]), repeats) for name, each in taken.items()}
    whole = next(iter(times.values()))
    return [[name, str(each), f"{each.median / whole.median:.2f}"] for name, each in times.items()]


def main() -> None:
    """Measure and write the tables."""
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory() as large, tempfile.TemporaryDirectory() as small:
        rows, says = of_resnet50(Path(large), given.repeats)
        of_files = of_small(Path(small), given.repeats)
        starts = [] if limited() else of_start(Path(small), min(7, given.repeats))
    finish(
        "\n\n".join(
            [
                "# Exported detectors: speed",
                __doc__.split("\n\n", 2)[2].strip().replace("\n", " "),
                f"{hardware()}. {whence()} {_versions()}. Milliseconds: median (minimum).",
                "## ResNet-50 FPN, 800 x 1066, batch 1, against torchvision's float32",
                table(["", "milliseconds", "torchvision", "times faster"], rows),
                *says,
                f"## {SMALL} at 320 pixels: files per second, decoding included",
                table(["", "files a second", "file, MB"], of_files),
                *_section("From the command to the first detection", ["", "milliseconds", "share"], starts),
            ]
        ),
        given.out,
    )


def _section(title: str, header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"## {title}", table(header, rows)] if rows else []


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "openvino", "nncf"))


if __name__ == "__main__":
    main()
