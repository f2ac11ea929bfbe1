"""8-bit integers in place of float32 in convolutions and linear layers, with ranges measured on images (NNCF).

All else stays in float32: box arithmetic, whose coordinates need more than 256 steps, and sums of maps, where the
larger summand would set the steps of the smaller one. Most of what int8 costs lies there.
"""

import io
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from numpy.typing import NDArray

from twostage.errors import MissingError
from twostage.export.program import quiet
from twostage.inference.runtimes import import_openvino
from twostage.progress import on_terminal

log = logging.getLogger("twostage.export")

Inputs = Mapping[str, NDArray]
# The operators that NNCF would quantise besides, by OpenVINO's names and by ONNX's.
_FLOAT = (
    *("Add", "Subtract", "Sub", "Multiply", "Mul", "Divide", "Div", "Maximum", "Max", "Minimum", "Min", "Power", "Pow"),
    *("Sqrt", "SquaredDifference", "Exp", "Interpolate", "Resize", "Concat", "ReduceMean", "ReduceSum", "ReduceMax"),
    *("AvgPool", "AveragePool", "MVN", "Pad", "Gather", "ROIAlign", "RoiAlign", "ROIPooling", "MaxRoiPool", "Split"),
    *("ScatterNDUpdate", "ScatterND", "VariadicSplit", "StridedSlice", "Slice", "Softmax", "Loop", "Clamp", "Clip"),
    "Transpose",
)


def quantised(model: Any, images: Sequence[Inputs], float_layers: Sequence[str] = ()) -> Any:
    """A model of OpenVINO or ONNX with int8 layers; those named here stay in float32.

    Raises MissingError without NNCF.
    """
    nncf = import_nncf()
    from nncf.quantization.advanced_parameters import QuantizationParameters

    # OpenVINO splits the bias from an ONNX convolution, and renames the rest.
    names = [name for layer in float_layers for name in (layer, f"{layer}/WithoutBiases")]
    log.info("int8: ranges of %d images ...", len(images))
    bars = log.isEnabledFor(logging.INFO) and on_terminal()
    with quiet(), redirect_stdout(sys.stderr if bars else io.StringIO()):
        return nncf.quantize(
            model.clone() if hasattr(model, "clone") else model,
            nncf.Dataset([dict(each) for each in images]),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,  # activations with a zero point: few are symmetric
            ignored_scope=nncf.IgnoredScope(types=list(_FLOAT), names=names, validate=False),
            # Without VNNI a sum of two products of 8 bits overflows 16: weights of 7 bits give the same everywhere.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                # ONNX Runtime has one range for all channels of a map, depthwise convolutions included.
                activations_quantization_params=QuantizationParameters(per_channel=False),
            ),
        )


def import_nncf() -> Any:
    """NNCF without its telemetry. Raises MissingError without it."""
    os.environ.setdefault("NNCF_CI", "1")  # read at its import: nothing is sent
    import_openvino("nncf")
    try:
        import nncf
    except ImportError:
        raise MissingError("--precision int8 needs nncf: pip install 'twostage[quantise]'") from None
    return nncf
