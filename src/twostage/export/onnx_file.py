"""A detector as an ONNX file, by the exporter of `torch.export` programs and the operators of `onnx_operators`."""

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from twostage.export.onnx_operators import TRANSLATIONS
from twostage.export.program import quiet
from twostage.inference.signature import Signature

_SCOPES = "pkg.torch.onnx.name_scopes"
LAYERS = ("Conv", "MatMul", "Gemm")
OPSET = 18  # ONNX Runtime has no RoiAlign of 22 and later


def onnx_model(program: ExportedProgram, signature: Signature) -> ir.Model:
    """The program as an ONNX model."""
    with quiet(), torch.no_grad():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            custom_translation_table=TRANSLATIONS,
            opset_version=OPSET,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            optimize=True,
            verbose=False,
        )
    assert converted is not None
    _name_nodes(converted.model)
    return converted.model


def save_onnx(model: ir.Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Write one file with these entries in its metadata."""
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    model.producer_name, model.producer_version = "twostage", None
    ir.save(model, path)


def _name_nodes(model: ir.Model) -> None:
    """Name each node after the module that it is computed in and its operator, as in `head.body.fc6/MatMul`.

    The exporter's own record of where in the code a node came from is longer than the graph, and goes.
    """
    names: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['', '']"))
        inside = scopes[-2].removeprefix("model.") if len(scopes) > 1 else ""
        name = f"{inside}/{node.op_type}" if inside else node.op_type
        names[name] += 1
        node.name = name if names[name] == 1 else f"{name}_{names[name]}"
        node.metadata_props.clear()
        node.doc_string = None
    for value in list(model.graph.initializers.values()):
        node, place = next(iter(value.uses()))
        kind = {1: "weight", 2: "bias"}.get(place, f"input{place}")
        value.name = f"{node.name}.{kind}"
