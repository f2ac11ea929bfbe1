"""What int8 costs trained detectors: AP on a validation split before and after, by `twostage export`.

    python benchmarks/export_int8.py blood=runs/cells/weights/best.safetensors:DATA ... \
        --out benchmarks/results/export_int8.md

Each is exported for both runtimes with `--precision int8 --calibrate DATA`; ranges come from a hundred training images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _timing import finish, hardware, table

RUNTIMES = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}


def row_of(case: str, format: str, folder: Path) -> list[str]:
    """A row of the table."""
    name, _, rest = case.partition("=")
    weights, _, data = rest.rpartition(":")
    out = folder / f"{name}-{format}"
    command = [sys.executable, "-m", "twostage", "export", "--weights", weights, "--format", format]
    command += ["--precision", "int8", "--calibrate", data, "--out", str(out), "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    result = json.loads(run.stdout)
    quality, model = result["certificate"]["quality"], json.loads(run.stdout)["model"]
    masks = [f"{quality[key]:.4f}" if quality[key] is not None else "" for key in ("masks_before", "masks_after")]
    size = sum(Path(model).with_suffix(suffix).stat().st_size for suffix in (".onnx", ".bin") if _there(model, suffix))
    float_parts = " and ".join(quality["float_parts"]) or "none"
    row = [name, RUNTIMES[format], str(quality["images"]), f"{quality['before']:.4f}", f"{quality['after']:.4f}"]
    return [*row, *masks, f"{max(0.0, quality['lost']):.2f}", float_parts, f"{size / 1e6:.1f}"]


def _there(model: str, suffix: str) -> bool:
    return Path(model).with_suffix(suffix).exists()


def main() -> None:
    """Export, read the certificates, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", help="NAME=WEIGHTS:DATA")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row_of(case, format, Path(folder)) for case in given.cases for format in RUNTIMES]
    titles = ["detector", "runtime", "images", "AP before", "after", "mask AP before", "after", "points lost"]
    finish(
        "\n\n".join(
            [
                "# int8: what it costs",
                __doc__.split("\n\n", 2)[2].strip().replace("\n", " "),
                f"{hardware()}.",
                table([*titles, "left in float32", "weights, MB"], rows),
            ]
        ),
        given.out,
    )


if __name__ == "__main__":
    main()
