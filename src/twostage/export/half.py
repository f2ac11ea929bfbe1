"""Weights of an ONNX model in float16: half the size on disk, computed in float32 as before."""

import numpy as np
import onnx_ir as ir

_LEAST = 1024  # numbers: below, nothing is saved


def halve(model: ir.Model) -> None:
    """Store the large weights in float16, each with a Cast that the runtime computes once, when it loads the file."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST:
            continue
        half = ir.Value(
            name=f"{name}.float16",
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(tensor.numpy().astype(np.float16)),
        )
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value})
        cast.outputs[0].name = f"{name}.float32"
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        graph.initializers[f"{name}.float16"] = half
        graph.insert_before(graph[0], cast)
