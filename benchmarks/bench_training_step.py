"""One training step beside torchvision's: the tiny net at 192 px, and ResNet-50 with a pyramid at 480 x 640.

    python benchmarks/bench_training_step.py --out benchmarks/results/training_step.md

Forward, backward and optimizer, interleaved in one process. Images and boxes: photos for ResNet-50, generated
scenes for the tiny net. Its floor is the time of its convolutions and matrix products, forward and backward, at the
speed of one large matrix product. Peak memory is that of a process of its own that takes four steps, as Linux has it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from _peer import build_peer, peer_inputs
from _pictures import photo_data, whence
from _timing import compare, finish, hardware, table, versus
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from twostage.data.batch import stack_targets
from twostage.data.loader import Loaded, training_batches
from twostage.data.recognise import open_dataset
from twostage.data.resize import Resize
from twostage.data.scenes import write_scenes
from twostage.inference.precision import choose_precision
from twostage.models.build import build
from twostage.models.configure import configure
from twostage.models.two_stage import PARTS
from twostage.models.zoo import named
from twostage.training.optimiser import freeze, train_mode

Step = Callable[[], None]
FREEZE = 2  # stem and first stage, torchvision's trainable_layers=3


def tiny_batches(scratch: Path, count: int = 6) -> list[Loaded]:
    """Batches of 8 scenes of 192 px."""
    data = open_dataset(write_scenes(scratch / "scenes", train=64, val=1, seed=0), split="train")
    stream = training_batches(data, resize=Resize(size=192, max_size=192), augment=None, batch=8, seed=0)
    return [next(stream) for _ in range(count)]


def photo_batches(count: int = 3, crowd: int = 0) -> list[Loaded]:
    """Batches of 2 photos stretched to 480 x 640; with `crowd` so many boxes an image, drawn at random."""
    stream = training_batches(photo_data(), resize=Resize("fixed", 480), augment=None, batch=2, seed=0)
    loaded = [next(stream) for _ in range(count)]
    return [widened(one, crowd) for one in loaded]


def widened(loaded: Loaded, crowd: int) -> Loaded:
    """480 x 480 pixels stretched to 480 x 640, boxes with them."""
    images = nn.functional.interpolate(loaded.batch.images, (480, 640), mode="bilinear")
    batch = type(loaded.batch)(
        images.contiguous(memory_format=torch.channels_last), torch.tensor([[480, 640]] * len(images))
    )
    if not crowd:
        boxes = loaded.targets.boxes * torch.tensor([640 / 480, 1.0, 640 / 480, 1.0])
        targets = type(loaded.targets)(boxes, loaded.targets.labels, loaded.targets.valid, loaded.targets.seeds)
        return loaded._replace(batch=batch, targets=targets)
    generator = torch.Generator().manual_seed(0)
    corners = [torch.rand(crowd, 2, generator=generator) * torch.tensor([560.0, 400.0]) for _ in images]
    boxes = [torch.cat([c, c + 10 + 70 * torch.rand(crowd, 2, generator=generator)], 1) for c in corners]
    labels = [torch.randint(0, 80, (crowd,), generator=generator) for _ in images]
    return loaded._replace(batch=batch, targets=stack_targets(boxes, labels, loaded.targets.seeds.tolist()))


def stepper(model: nn.Module, losses: Callable[[Loaded], dict], batches: list[Loaded], bf16: bool) -> Step:
    """A function that takes the next step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4, momentum=0.9)
    turn = 0

    def step() -> None:
        nonlocal turn
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = sum(losses(batches[turn % len(batches)]).values())
        loss.backward()
        optimizer.step()
        turn += 1

    return step


def ours(name: str, classes: int, batches: list[Loaded], *, frozen: int, bf16: bool = False, **fields: object) -> Step:
    """A step of ours."""
    torch.manual_seed(0)
    model = build(configure(named(name), fields), classes).to(memory_format=torch.channels_last)
    freeze(model, frozen)
    train_mode(model, PARTS, frozen)
    return stepper(model, lambda one: model(one.batch, one.targets), batches, bf16)


def peer_resnet50(batches: list[Loaded], bf16: bool = False) -> Step:
    """A step of torchvision's ResNet-50 with a pyramid, its BatchNorm frozen as in its training scripts."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    model = FasterRCNN(body, 81, min_size=480, max_size=640, _skip_resize=True).train()
    return stepper(model, lambda one: model(*peer_inputs(one)), batches, bf16)


def peer_tiny(batches: list[Loaded]) -> Step:
    """A step of torchvision's detector around the 2.3 M-parameter net."""
    model = build_peer(5, 192).train()
    return stepper(model, lambda one: model(*peer_inputs(one)), batches, False)


def floor_of(name: str, classes: int, loaded: Loaded, **fields: object) -> tuple[float, float]:
    """Milliseconds of a step's products at the speed of `torch.mm`, and that speed in GFLOP/s."""
    model = build(configure(named(name), fields), classes).train()
    with FlopCounterMode(display=False) as counter:
        sum(model(loaded.batch, loaded.targets).values()).backward()
    side = 2048
    a, b = torch.rand(side, side), torch.rand(side, side)
    taken = compare({"mm": lambda: torch.mm(a, b)}, repeats=15, warmup=3)["mm"].median
    speed = 2 * side**3 / taken / 1e6
    return counter.get_total_flops() / speed / 1e6, speed


def peak_memory(case: str) -> float:
    """GiB of a process that takes four steps of one case."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", case], capture_output=True, text=True, check=True, env=os.environ
    )
    return float(done.stdout.split()[-1])


def memory_case(case: str) -> None:
    """Runs in the process of its own."""
    who, crowd = case.split("/")
    batches = photo_batches(crowd=int(crowd))
    step = ours(R50, 80, batches, frozen=FREEZE) if who == "ours" else peer_resnet50(batches)
    for _ in range(4):
        step()
    # Not `ru_maxrss`: that one counts the process that started this one too.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)


R50 = "faster_rcnn_resnet50_fpn"


def main() -> None:
    """Time all cases, measure memory, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        memory_case(given.memory)
        return
    crowds = (0, 300)
    bf16 = choose_precision(torch.device("cpu"), "auto") == "bf16"  # where it is emulated, a step takes far longer
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scenes = tiny_batches(Path(scratch))
        cases = {"ours": ours("faster_rcnn_tiny_fpn", 5, scenes, frozen=0, size=192), "peer": peer_tiny(scenes)}
        times = compare(cases, repeats=4 * given.repeats, warmup=3)
        rows.append(versus("tiny, 192 px, batch 8, float32", times["ours"], times["peer"]))
        floor, speed = floor_of("faster_rcnn_tiny_fpn", 5, scenes[0], size=192)
        most = f"{times['peer'].median / floor:.2f} ({times['peer'].minimum / floor:.2f})"
    for crowd in crowds:
        photos = photo_batches(crowd=crowd)
        cases = {"ours": ours(R50, 80, photos, frozen=FREEZE), "peer": peer_resnet50(photos)}
        if bf16:
            cases["ours bf16"] = ours(R50, 80, photos, frozen=FREEZE, bf16=True)
            cases["peer bf16"] = peer_resnet50(photos, bf16=True)
        times = compare(cases, repeats=given.repeats)
        what = f"ResNet-50 FPN, 480 x 640, batch 2{f', {crowd} boxes an image' if crowd else ''}"
        rows.append(versus(f"{what}, float32", times["ours"], times["peer"]))
        if bf16:
            rows.append(versus(f"{what}, bf16 against its float32", times["ours bf16"], times["peer"]))
            rows.append(versus(f"{what}, bf16 against its bf16", times["ours bf16"], times["peer bf16"]))
    memory = [
        [
            f"{crowd or 'own'} boxes an image",
            f"{peak_memory(f'ours/{crowd}'):.2f}",
            f"{peak_memory(f'peer/{crowd}'):.2f}",
        ]
        for crowd in crowds
    ]
    text = "\n\n".join(
        [
            "# Training step, milliseconds: median (minimum)",
            f"`python benchmarks/bench_training_step.py`. {whence()}",
            hardware(),
            table(["case", "twostage", "torchvision", "times faster, by median (by minimum)"], rows),
            f"The convolutions and matrix products of the tiny net's step at the {speed:.0f} GFLOP/s of `torch.mm`, "
            "2048 x 2048, without anything else:",
            table(["case", "ms", "times faster than torchvision"], [["tiny, products alone", f"{floor:.0f}", most]]),
            "Peak memory of a process, GiB, float32:",
            table(["case", "twostage", "torchvision"], memory),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
