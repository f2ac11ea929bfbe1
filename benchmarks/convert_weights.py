"""What the conversion of another project's weights costs: seconds and memory, beside that of importing torch.

    python benchmarks/convert_weights.py [--out benchmarks/results/convert_weights.md]

The file is torchvision's Mask R-CNN with random weights, 178 MB, as torch.save writes it, and as detectron2's model zoo
writes its files: arrays in a plain pickle of protocol 2, which holds bytes as text.
"""

import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _timing import arguments, finish, hardware, table
from torchvision.models.detection import maskrcnn_resnet50_fpn

IMPORTS = "import torch, twostage.weights.convert, twostage.weights.pickled"


def peak_of(command: list[str]) -> tuple[float, float]:
    """Seconds, and the most MB that a process of its own held."""
    run = f"import resource, subprocess, sys; subprocess.run({command!r}, check=True, stdout=subprocess.DEVNULL)"
    say = "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{run}; {say}"], capture_output=True, text=True, check=True)
    return time.perf_counter() - started, float(done.stdout)


def main() -> None:
    """Write the two files, convert each, print the table."""
    options = arguments(__doc__ or "")
    _, base = peak_of([sys.executable, "-c", IMPORTS])
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        state = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
        torch.save(state, folder / "torch.pth")
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        (folder / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "?"}, protocol=2))
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6
        del state, arrays
        for file in (folder / "torch.pth", folder / "zoo.pkl"):
            command = [sys.executable, "-m", "twostage", "weights", "convert", str(file)]
            seconds, peak = peak_of([*command, "--out", str(file.with_suffix(".safetensors"))])
            ours = (peak - base) * 1.048576
            rows.append(
                [file.name, f"{file.stat().st_size / 1e6:.0f}", f"{seconds:.1f}", f"{peak:.0f}", f"{ours / size:.1f}"]
            )
    head = ["file", "MB", "seconds", "peak, MiB", f"above the {base:.0f} MiB of the imports, in sizes of the weights"]
    about = f"`python benchmarks/convert_weights.py`: `twostage weights convert` of {size:.0f} MB of weights."
    finish("\n\n".join(["# Converting weights", about, hardware(), table(head, rows)]), options.out)


if __name__ == "__main__":
    main()
