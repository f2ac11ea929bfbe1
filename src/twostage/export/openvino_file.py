"""An ONNX model as an OpenVINO file: the graph in a .xml file, the weights in a .bin file beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twostage.errors import MissingError, TwostageError
from twostage.inference.runtimes import PackageError, import_openvino

INSTALL = "pip install 'twostage[export]'"


def openvino_model(path: Path) -> Any:
    """The model of an ONNX file. Raises MissingError without OpenVINO, TwostageError where it reads something else."""
    try:
        openvino = import_openvino(path)
    except PackageError:
        raise MissingError(f"openvino is not installed: {INSTALL}") from None
    model = openvino.Core().read_model(path)
    if not (model.inputs and model.outputs and len(model.get_ops()) > len(model.inputs) + len(model.outputs)):
        raise TwostageError("OpenVINO read an empty graph from the ONNX file; its log names the operator.")
    for node in model.get_ops():
        if node.get_type_name() == "NonMaxSuppression":
            _keep_at_threshold(node)
    return model


def _keep_at_threshold(node: Any) -> None:
    """A box whose overlap equals the threshold stays, as in ONNX; OpenVINO removes it."""
    from openvino import opset11

    (value,) = node.input_value(3).get_node().get_data().reshape(1)
    above = np.nextafter(np.float32(value), np.float32(np.inf))
    node.input(3).replace_source_output(opset11.constant(above).output(0))


def save_openvino(model: Any, path: Path, metadata: Mapping[str, str], *, half: bool = False) -> None:
    """Write the .xml and the .bin file with these entries in its metadata; with `half` weights as float16."""
    openvino = import_openvino(path)
    for key, value in metadata.items():
        model.set_rt_info(value, [key])
    openvino.save_model(model, path, compress_to_fp16=half)
