"""R-CNN's windows beside its bare backbone, and the pooling of regions from small maps beside torchvision's.

Run with `python benchmarks/bench_windows.py`. Windows are cut from a photo and go through the network together; the
backbone alone gets the same windows ready made. Pooling: 300 regions of a map, as `twostage lineage` and VGG16 have it.
"""

from functools import partial

import torch
import torchvision.ops as tv
from _pictures import photos
from _timing import arguments, compare, finish, hardware, table, versus

from twostage.inference.prepare import prepared
from twostage.models.backbones.tiny import TinyConfig
from twostage.models.backbones.vgg import VGG16
from twostage.models.rcnn import WarpConfig, WarpedRegions
from twostage.models.regions.pooling import RegionFeatures
from twostage.ops.roi_pool import roi_pool
from twostage.ops.spp import spp

COUNT = 256  # windows


def boxes_on(height: float, width: float, count: int) -> torch.Tensor:
    """Boxes of a tenth to a half of the sides."""
    g = torch.Generator().manual_seed(0)
    limit = torch.tensor([width, height])
    corner = torch.rand(count, 2, generator=g) * limit * 0.5
    return torch.cat([corner, corner + limit * (0.1 + 0.4 * torch.rand(count, 2, generator=g))], dim=1)


def networks() -> dict[str, tuple[WarpedRegions, int]]:
    """R-CNN's network by name, and the number of timed windows."""
    vgg = WarpedRegions(WarpConfig(size=224, context=16, bins=7), VGG16())
    small = WarpedRegions(WarpConfig(), TinyConfig(single=True).build())
    return {"small backbone, 96 x 96": (small, COUNT), "VGG16, 224 x 224": (vgg, 16)}


@torch.inference_mode()
def throughput(repeats: int) -> list[list[object]]:
    """Windows a second through the whole and through the backbone alone, and the first as a share of the second."""
    (image,) = photos((480, 640), 1)
    rows: list[list[object]] = []
    for name, (net, count) in networks().items():
        net = net.to(memory_format=torch.channels_last).eval()
        net.backbone = prepared(net.backbone, torch.float32)
        boxes = boxes_on(480, 640, count)
        ready = [net.windows(image, some) for some in boxes.split(128)]
        whole, bare = compare(
            {
                "whole": partial(net, RegionFeatures((image[None],)), boxes[None]),
                "bare": lambda net=net, ready=ready: [net.backbone(windows) for windows in ready],
            },
            repeats=repeats,
        ).values()
        per_second = [f"{1e3 * count / times.median:.0f}" for times in (whole, bare)]
        rows.append([name, *per_second, f"{bare.median / whole.median:.0%} ({bare.minimum / whole.minimum:.0%})"])
    return rows


@torch.inference_mode()
def pooling(repeats: int) -> list[list[str]]:
    """RoIPool beside torchvision's, and SPP's four levels, by map."""
    rows = []
    for channels, height, width in ((128, 24, 32), (512, 38, 50)):
        features = torch.rand(1, channels, height, width)
        last = features.contiguous(memory_format=torch.channels_last)
        boxes = boxes_on(16 * height, 16 * width, 300)
        regions = torch.cat([torch.zeros(300, 1), boxes], dim=1)
        pool = partial(roi_pool, last, boxes[None], scale=1 / 16, output_size=6)
        theirs = partial(tv.roi_pool, features, regions, 6, 1 / 16)
        assert torch.equal(pool()[0], theirs())
        pyramid = partial(spp, last, boxes[None])
        ours, peer, levels = compare({"ours": pool, "theirs": theirs, "spp": pyramid}, repeats=repeats).values()
        name = f"{channels} x {height} x {width}"
        rows.append([*versus(f"RoIPool 6 x 6, map {name}", ours, peer)])
        rows.append([f"SPP 6-3-2-1, map {name}", str(levels), "", ""])
    return rows


def main() -> None:
    """Measure, print and write the tables."""
    given = arguments(__doc__ or "")
    text = "\n\n".join(
        [
            "# Windows and pooled regions",
            "`python benchmarks/bench_windows.py`, float32",
            hardware(),
            table(
                ["network", "windows a second", "backbone alone", "share, median (minimum)"], throughput(given.repeats)
            ),
            "300 regions, milliseconds, median (minimum):",
            table(["case", "twostage", "torchvision", "times faster, by median (by minimum)"], pooling(given.repeats)),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
