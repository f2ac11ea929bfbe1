"""`twostage export`: a detector as a folder with one file for a runtime, and what reads it there."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from twostage import __version__
from twostage.atomic import write_text
from twostage.data.dataset import Dataset
from twostage.detector import Detector
from twostage.errors import MissingError, UsageError
from twostage.export.bundle import bundle
from twostage.export.program import exported_program, quiet
from twostage.inference.predictor import make_batch
from twostage.inference.runtimes import FORMAT, KEY
from twostage.inference.signature import Signature, inputs_of
from twostage.models.config import TwoStageConfig
from twostage.weights.file import Card, sha256

Format = Literal["onnx", "openvino", "torch"]
Precision = Literal["fp32", "fp16", "int8"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
INSTALL = "pip install 'twostage[export]'"
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


class Source(NamedTuple):
    """A detector and the weights file that it is from."""

    detector: Detector
    card: Card
    file: Path


class Form(NamedTuple):
    """What is written: for which runtime, with which weights, taking `pixels`, showing its `stages`."""

    format: Format = "onnx"
    precision: Precision = "fp32"
    pixels: bool = False
    stages: bool = False


class Written(NamedTuple):
    """The model's file, the names of its layers with weights, and what writes it with int8 layers but for some."""

    path: Path
    layers: Sequence[str] = ()
    quantise: Callable[[Sequence[str]], None] | None = None


def write(source: Source, folder: Path, form: Form, calibration: Dataset | None = None, count: int = 100) -> Written:
    """Write the model, `predict.py` and its requirements into a folder.

    int8 has the ranges of so many images of the data set `calibration`; the file is there once `Written.quantise` was
    called. Raises UsageError for a detector that cannot be exported, MissingError where a package is missing.
    """
    require_packages(form)
    if form.format != "torch":
        write_text(folder / "predict.py", bundle())
        write_text(folder / "requirements.txt", f"numpy>=1.26\npillow>=10.3\n{_RUNTIMES[form.format]}\n")
    program, signature = exported_program(source.detector.model, stages=form.stages)
    if form.pixels:
        signature = signature._replace(inputs=("pixels",))
    metadata = {KEY: json.dumps(about(source, signature, form))}
    path = folder / FILES[form.format]
    if form.format == "torch":
        with quiet():
            torch.export.save(program, path, extra_files=metadata)
        return Written(path)
    from twostage.export.onnx_file import LAYERS, onnx_model, save_onnx

    model = onnx_model(program, replace_inputs(signature, form))
    layers = [node.name or "" for node in model.graph if node.op_type in LAYERS]
    if form.pixels:
        from twostage.export.onnx_pixels import take_pixels

        take_pixels(model, source.detector.config.image)  # type: ignore[arg-type]
    if form.precision == "fp16" and form.format == "onnx":
        from twostage.export.half import halve

        halve(model)
    onnx = folder / FILES["onnx"]
    save_onnx(model, onnx, metadata)
    images = calibration_inputs(source.detector, signature, form, calibration, count) if calibration else []
    return (_for_openvino if form.format == "openvino" else _for_onnx)(onnx, path, form, metadata, layers, images)


def replace_inputs(signature: Signature, form: Form) -> Signature:
    """The signature before the file takes pixels."""
    return signature._replace(inputs=("images", "sizes")) if form.pixels else signature


def _for_openvino(
    onnx: Path, path: Path, form: Form, metadata: dict[str, str], layers: Sequence[str], images: list[dict[str, Any]]
) -> Written:
    from twostage.export.openvino_file import openvino_model, save_openvino

    model = openvino_model(onnx)
    onnx.unlink()
    if form.precision != "int8":
        save_openvino(model, path, metadata, half=form.precision == "fp16")
        return Written(path, layers)

    def quantise(float_layers: Sequence[str]) -> None:
        """Write the file with int8 layers."""
        from twostage.export.quantise import quantised

        save_openvino(quantised(model, images, float_layers), path, metadata)

    return Written(path, layers, quantise)


def _for_onnx(
    onnx: Path, path: Path, form: Form, metadata: dict[str, str], layers: Sequence[str], images: list[dict[str, Any]]
) -> Written:
    if form.precision != "int8":
        return Written(path, layers)
    import onnx as package

    model = package.load(onnx)

    def quantise(float_layers: Sequence[str]) -> None:
        """Write the file with int8 layers."""
        from twostage.export.quantise import quantised

        # Of its own metadata and producer NNCF keeps the first alone.
        package.save(quantised(model, images, float_layers), path)

    return Written(path, layers, quantise)


def calibration_inputs(
    detector: Detector, signature: Signature, form: Form, dataset: Dataset, count: int
) -> list[dict[str, Any]]:
    """What the model takes for so many images of a data set, at equal steps through it."""
    places = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    images = (dataset.image(index) for index in places.tolist())  # read one by one: photos take much memory
    if form.pixels:
        return [{"pixels": image[None]} for image in images]
    batches = (make_batch([image], detector.config) for image in images)
    return [{name: x.contiguous().numpy() for name, x in inputs_of(batch, signature).items()} for batch in batches]


def about(source: Source, signature: Signature, form: Form) -> dict[str, Any]:
    """What an exported file states about itself."""
    detector = source.detector
    config = detector.config
    image, post = config.image, config.postprocess
    rule = image.resizing
    mask = config.mask if isinstance(config, TwoStageConfig) else None
    return {
        "format": FORMAT,
        "version": __version__,
        "model": detector.name,
        "names": list(detector.names),
        "licence": source.card.licence,
        "weights": {"file": source.file.name, "sha256": sha256(source.file)},
        "file_format": form.format,
        "precision": form.precision,
        "inputs": signature.inputs,
        "outputs": signature.outputs,
        "pixels": form.pixels,
        "resize": {name: getattr(rule, name) for name in ("mode", "size", "max_size", "antialias", "rounding", "by")},
        "divisor": image.divisor,
        "thresholds": {"score": post.score_threshold, "nms": post.nms, "max_det": post.max_det},
        "mask": None if mask is None else {"threshold": mask.threshold, "paste": mask.paste},
        "card": replace(source.card, config=config).to_json(),
    }


def require_packages(form: Form) -> None:
    """Raises MissingError with the command that brings them where packages for a form are missing.

    UsageError for a form that there is not.
    """
    if form.format == "torch":
        if form.precision != "fp32" or form.pixels:
            wrong = "pixels" if form.pixels else f"precision {form.precision}"
            raise UsageError(f"{wrong}: a file for torch is in fp32 and takes resized images. Take --format onnx.")
        return
    if form.pixels and form.stages:
        raise UsageError("pixels: stages are on the resized image, which such a file does not take. Leave one out.")
    if form.pixels and form.format == "openvino":
        raise UsageError(
            "pixels: OpenVINO computes the resized shape in 32 bits, and may miss it by a pixel. Leave --pixels out: "
            "predict.py resizes; or take --format onnx."
        )
    needed = ("onnx", "onnxscript", _RUNTIMES[form.format])
    missing = [name for name in needed if not _is_installed(name)]
    if missing:
        raise MissingError(f"--format {form.format} needs {' and '.join(missing)}: {INSTALL}")
    if form.precision == "int8":
        from twostage.export.quantise import import_nncf

        import_nncf()


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
