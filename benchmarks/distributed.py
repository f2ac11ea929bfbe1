"""Do two processes learn what one does? At every step, both from the same weights, on real pictures.

    TWOSTAGE_DATA=... python benchmarks/distributed.py --out benchmarks/results/distributed.md

torchrun starts two processes (gloo on a processor, NCCL where there are two GPUs) that train a detector together; at
each step the first also computes losses and gradients of the whole batch alone, from the same weights. Reported are the
largest differences.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from _timing import finish, hardware, table
from torch import Tensor

from twostage.data.augment import Augment
from twostage.data.loader import training_batches
from twostage.data.recognise import open_dataset
from twostage.distributed import Processes, process_group
from twostage.models.build import build
from twostage.models.configure import configure
from twostage.models.zoo import named

MODELS = {"faster_rcnn_resnet50_fpn": (2, 10), "faster_rcnn_tiny_fpn": (8, 60)}  # images a batch, steps
CASES = (
    ("faster_rcnn_tiny_fpn", "group"),
    ("faster_rcnn_tiny_fpn", "frozen"),
    ("faster_rcnn_resnet50_fpn", "group"),
)


def main() -> int:
    """Start the two processes, or be one of them; 1 where a loss differs by more than 1e-5."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if "LOCAL_RANK" not in os.environ:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        return subprocess.run([*command, *sys.argv[1:]], check=False).returncode
    with process_group() as processes:
        found = {(name, norm): compare(processes, name, norm, *MODELS[name]) for name, norm in CASES}
        if processes.is_main:
            report(found, processes.device("auto"), given.out)
        return int(any(losses > 1e-5 for losses, _ in found.values()))


def compare(processes: Processes, name: str, norm: str, batch: int, steps: int) -> tuple[float, float]:
    """The largest difference of a loss over all steps, and of the gradient as a share of its norm."""
    torch.manual_seed(0)
    device = processes.device("auto")
    dataset = open_dataset(Path(os.environ["TWOSTAGE_DATA"]) / "data" / "blood-cells", split="train")
    model = build(configure(named(name), {"norm": norm}), len(dataset.names))
    model = model.to(device).to(memory_format=torch.channels_last).train()
    learner = processes.wrap_ddp(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    how = {
        "resize": model.config.image.resizing,
        "augment": Augment(scale=(0.75, 1.33), crop=0.5),
        "batch": batch,
        "seed": 0,
        "divisor": model.config.image.divisor,
    }
    shares = training_batches(dataset, **how, rank=processes.rank, world=processes.world)
    wholes = training_batches(dataset, **how)
    worst, worst_gradient = 0.0, 0.0
    for _ in range(steps):
        share, whole = next(shares), next(wholes)
        expected: dict[str, Tensor] = {}
        gradient: list[Tensor] = []
        if processes.is_main:
            expected = model(whole.batch.to(device), whole.targets.to(device))
            parameters = list(model.parameters())
            gradient = list(torch.autograd.grad(torch.stack(list(expected.values())).sum(), parameters))
        canvas = processes.max(share.batch.images.shape[2:])
        losses = learner(share.batch.on_canvas(*canvas).to(device), share.targets.to(device), mean=processes.mean)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        for key, value in losses.items():
            mean = processes.mean(value)
            if processes.is_main:
                worst = max(worst, float((mean - expected[key]).detach().abs()))
        if processes.is_main:
            apart = torch.cat([(p.grad - g).flatten() for p, g in zip(parameters, gradient, strict=True)]).norm()
            worst_gradient = max(worst_gradient, float(apart / torch.cat([g.flatten() for g in gradient]).norm()))
        optimizer.step()
    return worst, worst_gradient


def report(found: dict[tuple[str, str], tuple[float, float]], device: torch.device, out: Path | None) -> None:
    """Print the table, and write it where asked."""
    rows = [
        [name, norm, str(MODELS[name][0]), str(MODELS[name][1]), f"{losses:.1e}", f"{gradient:.1e}"]
        for (name, norm), (losses, gradient) in found.items()
    ]
    columns = [
        "model",
        "normalisation",
        "images a batch",
        "steps",
        "a loss at most",
        "gradient, as a share of its norm",
    ]
    text = "\n".join(
        [
            "# Two processes beside one",
            "",
            "`python benchmarks/distributed.py`: two processes of torchrun share each batch of blood-cells (random "
            "scale and crop, so that canvases differ); at each step one process computes the whole batch from the same "
            f"weights. Device: {device.type}. Largest differences over all steps:",
            "",
            hardware(),
            "",
            table(columns, rows),
        ]
    )
    finish(text, out)


if __name__ == "__main__":
    sys.exit(main())
