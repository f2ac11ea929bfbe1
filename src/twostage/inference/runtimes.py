"""Exported files in ONNX Runtime and OpenVINO: arrays in, arrays out, with what the file says about itself."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

KEY = "twostage-export"  # of the metadata of an exported file
FORMAT = 1
UNREADABLE = "It is damaged, or another program wrote it: export the detector again with twostage."
_KEYS = (
    "names",
    "inputs",
    "outputs",
    "pixels",
    "resize",
    "divisor",
    "thresholds",
    "mask",
    "precision",
    "weights",
    "card",
)


class FileError(Exception):
    """A model or image cannot be used; the message says which, why, and how to fix it."""

    exit_code = 3


class PackageError(Exception):
    """A package is not installed; the message has the command that brings it."""

    exit_code = 4


@runtime_checkable
class Session(Protocol):
    """A model in its runtime."""

    metadata: dict[str, Any]

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The outputs of the model by their names."""
        ...


class OnnxSession:
    """A .onnx file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, threads: int | None = None, at_once: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise PackageError(f"{path}: onnxruntime is not installed: pip install onnxruntime") from None
        onnxruntime.disable_telemetry_events()
        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        if at_once > 1:
            options.intra_op_num_threads = max(1, (threads or cores()) // at_once)
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise FileError(f"{path}: ONNX Runtime cannot read it ({_said(error)}). {UNREADABLE}") from None
        self.metadata = read_metadata(path, self._session.get_modelmeta().custom_metadata_map.get(KEY))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """See `Session`."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


class OpenVINOSession:
    """A .xml file, with its .bin beside it, in OpenVINO on the CPU; `precision` is fp32 or bf16."""

    def __init__(self, path: Path, threads: int | None = None, precision: str = "fp32", at_once: int = 1) -> None:
        openvino = import_openvino(path)
        if not path.with_suffix(".bin").is_file():
            raise FileError(f"{path}: its weights, {path.with_suffix('.bin').name}, are not beside it: copy both.")
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise FileError(f"{path}: OpenVINO has no bf16 on this CPU: use fp32.")
        hints: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        }
        if at_once > 1:
            hints["NUM_STREAMS"] = at_once
        if threads:
            hints["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(path)
            text = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
            self.metadata = read_metadata(path, text)
            self._model = core.compile_model(model, "CPU", hints)
        except RuntimeError as error:
            raise FileError(f"{path}: OpenVINO cannot read it ({_said(error, -1)}). {UNREADABLE}") from None
        self._outputs = [output.get_any_name() for output in self._model.outputs]
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """See `Session`."""
        # Each of several threads has a request of its own; a new one for every call would prepare its memory anew.
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        found = request.infer(dict(inputs))
        outputs = {name: np.array(found[name]) for name in self._outputs}  # the request will write there again
        self._idle.put(request)
        return outputs


def import_openvino(needed_by: object) -> Any:
    """The package, without its telemetry: that sends an event at every import. Raises PackageError without it."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what is None cannot be imported
    try:
        import openvino
    except ImportError:
        raise PackageError(f"{needed_by}: openvino is not installed: pip install openvino") from None
    return openvino


def read_metadata(path: Path, text: str | None) -> dict[str, Any]:
    """The entry of an exported file. Raises FileError for a file without one, or of another version."""
    if not text:
        raise FileError(
            f"{path}: was not written by `twostage export`: it has no {KEY!r} metadata with classes, thresholds and "
            "resizing. Models of other programs cannot be used here: export the detector with twostage."
        )
    try:
        metadata = json.loads(text)
        version, lacking = metadata.get("format"), [key for key in _KEYS if key not in metadata]
    except (ValueError, AttributeError, RecursionError):
        raise FileError(f"{path}: its {KEY!r} metadata is damaged. Export it again.") from None
    if version == FORMAT and lacking:
        raise FileError(f"{path}: its {KEY!r} metadata lacks {', '.join(lacking)}. Export it again.")
    if version != FORMAT:
        raise FileError(
            f"{path}: was exported in format {metadata.get('format')} by twostage {metadata.get('version')}; this "
            f"reads format {FORMAT}. Export it again, or take the predict.py that was written beside it."
        )
    return metadata


def open_session(path: Path, threads: int | None = None, precision: str = "fp32", at_once: int = 1) -> Session:
    """An exported file in its runtime, whose threads are shared by the images `at_once`. Raises FileError or
    PackageError."""
    if not path.is_file():
        raise FileError(f"{path}: no such file. Give the model.onnx or model.xml that `twostage export` wrote.")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        if precision != "fp32":
            raise FileError(f"{path}: ONNX Runtime computes it as it was exported, not in {precision}. Leave that out.")
        return OnnxSession(path, threads, at_once)
    if suffix == ".xml":
        return OpenVINOSession(path, threads, precision, at_once)
    raise FileError(f"{path}: neither a .onnx nor a .xml file.")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _said(error: Exception, line: int = 0) -> str:
    """A line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[line][:200]
