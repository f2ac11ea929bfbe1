"""RoIAlign and RoIPool beside torchvision's in one process, same result asserted.

Run with `python benchmarks/bench_roi_align.py`.

The work of Faster R-CNN R50-FPN (800 x 1066 image, 1000 boxes, 256 channels, four levels) and of the tiny detector
(eight images of 192 x 192, 128 boxes each, 64 channels). Torchvision gets features in its own favoured layout (NCHW),
ours in channels-last, which convolutions on a CPU prefer too.
"""

from collections.abc import Callable

import torch
import torchvision.ops as tv
from _timing import arguments, compare, finish, hardware, table, versus
from torch import Tensor

from twostage.ops.roi_align import roi_align
from twostage.ops.roi_pool import roi_pool

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def example(n: int, p: int, c: int, height: int, width: int, *, unit: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """Features, boxes and levels; a box of side `unit` is the smallest of the third level (FPN, equation 1: 224 px)."""
    g = torch.Generator().manual_seed(0)
    features = [torch.randn(n, c, -(-height * k // 32), -(-width * k // 32), generator=g) for k in (8, 4, 2, 1)]
    centres = torch.rand(n, p, 2, generator=g) * torch.tensor([width, height])
    # Sides spread evenly over the octaves of all four levels, aspect ratios 1:2 to 2:1.
    side = unit * 2 ** (torch.rand(n, p, generator=g) * 4 - 2.5)
    stretch = 2 ** (torch.rand(n, p, generator=g) - 0.5)
    sides = torch.stack([side * stretch, side / stretch], dim=-1)
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]).float())
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    levels = (2 + torch.log2(area.sqrt() / unit + 1e-6)).floor().clamp(0, 3).long()
    return features, boxes, levels


def torchvision_roi_align(features: list[Tensor], boxes: Tensor, levels: Tensor) -> Tensor:
    """What torchvision's MultiScaleRoIAlign does, with the levels given."""
    n, p = levels.shape
    regions = torch.cat([torch.arange(n).repeat_interleave(p)[:, None].to(boxes), boxes.flatten(0, 1)], dim=1)
    out = torch.zeros(n * p, features[0].shape[1], 7, 7, dtype=features[0].dtype)
    for number, (feature, scale) in enumerate(zip(features, SCALES, strict=True)):
        some = torch.where(levels.flatten() == number)[0]
        out[some] = tv.roi_align(feature, regions[some], 7, scale, 2, False)
    return out


def cases(features: list[Tensor], boxes: Tensor, levels: Tensor) -> dict[str, tuple[Callable, Callable]]:
    """Ours and theirs, by name."""
    nchw = [f.contiguous() for f in features]
    nhwc = [f.contiguous(memory_format=torch.channels_last) for f in features]
    half = [f.bfloat16() for f in nhwc]
    ours, theirs, ours_half = ([f.clone().requires_grad_() for f in fs] for fs in (nhwc, nchw, half))
    gradient = torch.randn(*levels.shape, 7, 7, features[0].shape[1]).permute(0, 1, 4, 2, 3)
    gradient_half, gradient_nchw = gradient.bfloat16(), gradient.flatten(0, 1).contiguous()

    def forward(fs: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return roi_align(fs, boxes, levels, scales=SCALES)

    def torchvision_forward() -> Tensor:
        with torch.no_grad():
            return torchvision_roi_align(nchw, boxes, levels)

    def backward(fs: list[Tensor], g: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(roi_align(fs, boxes, levels, scales=SCALES), fs, g)

    def torchvision_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(torchvision_roi_align(theirs, boxes, levels), theirs, gradient_nchw)

    return {
        "forward": (lambda: forward(nhwc), torchvision_forward),
        "forward, ours in bf16": (lambda: forward(half), torchvision_forward),
        "forward, ours from NCHW": (lambda: forward(nchw), torchvision_forward),
        "forward and backward": (lambda: backward(ours, gradient), torchvision_backward),
        "forward and backward, ours in bf16": (lambda: backward(ours_half, gradient_half), torchvision_backward),
    }


def pooling(repeats: int) -> list[list[str]]:
    """RoIPool of Faster R-CNN VGG16: 600 x 800 image, 512 channels, 300 boxes at test and 128 in training."""
    rows = []
    for kind, p in (("forward", 300), ("forward and backward", 128)):
        features, boxes, _ = example(1, p, 512, 608, 800, unit=224)
        ours = features[2].relu().contiguous(memory_format=torch.channels_last).requires_grad_(p == 128)
        theirs = ours.detach().contiguous().requires_grad_(p == 128)
        assert torch.equal(roi_pool(ours, boxes, scale=1 / 16)[0], tv.roi_pool(theirs, list(boxes), 7, 1 / 16))

        def run(function: Callable[[Tensor], Tensor], maps: Tensor) -> object:
            out = function(maps)
            return torch.autograd.grad(out, maps, out.detach()) if maps.requires_grad else out

        times = compare(
            {
                "ours": lambda ours=ours, boxes=boxes: run(lambda f: roi_pool(f, boxes, scale=1 / 16), ours),
                "theirs": lambda theirs=theirs, boxes=boxes: run(
                    lambda f: tv.roi_pool(f, list(boxes), 7, 1 / 16), theirs
                ),
            },
            repeats=repeats,
        )
        rows.append(versus(f"1 x {p} boxes, 512 channels, 608 x 800: {kind}", times["ours"], times["theirs"]))
    return rows


def main() -> None:
    chosen = arguments(__doc__ or "")
    rows = []
    for name, setting in {
        "1 x 1000 boxes, 256 channels, 800 x 1066": example(1, 1000, 256, 800, 1066, unit=224),
        "2 x 512 boxes, 256 channels, 480 x 640": example(2, 512, 256, 480, 640, unit=224),
        "8 x 128 boxes, 64 channels, 192 x 192": example(8, 128, 64, 192, 192, unit=56),
        "1 x 100 boxes, 256 channels, 800 x 1066": example(1, 100, 256, 800, 1066, unit=224),
    }.items():
        assert (
            roi_align(setting[0], *setting[1:], scales=SCALES).flatten(0, 1) - torchvision_roi_align(*setting)
        ).abs().max() < 1e-4
        for kind, (ours, theirs) in cases(*setting).items():
            times = compare({"ours": ours, "theirs": theirs}, repeats=chosen.repeats)
            rows.append(versus(f"{name}: {kind}", times["ours"], times["theirs"]))
    header = ["twostage, ms: median (minimum)", "torchvision, ms", "times faster"]
    align = table(["RoIAlign 7 x 7, ratio 2", *header], rows)
    pool = table(["RoIPool 7 x 7", *header], pooling(chosen.repeats))
    command = "# Features of regions\n\n`python benchmarks/bench_roi_align.py`"
    finish(f"{command}\n\n{hardware()}\n\n{align}\n\n{pool}", chosen.out)


if __name__ == "__main__":
    main()
