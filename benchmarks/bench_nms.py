"""Exact NMS beside torchvision's in one process, same kept boxes asserted: `python benchmarks/bench_nms.py`.

Random boxes seldom suppress each other; detectors give clusters around objects, most of which are suppressed.
Torchvision is called as its detectors do: `batched_nms` for each image.
"""

from collections.abc import Callable

import torch
import torchvision.ops as tv
from _timing import arguments, compare, finish, hardware, table, versus
from torch import Tensor

from twostage.ops.nms import nms


def example(n: int, m: int, groups: int, *, clusters: int, width: float = 1066) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes on an image of height 800, scores and groups; with `clusters`, the boxes lie around that many objects."""
    g = torch.Generator().manual_seed(0)
    centres = torch.rand(n, clusters or m, 2, generator=g) * torch.tensor([width, 800.0])
    sides = 16 * 2 ** (torch.rand(n, clusters or m, 2, generator=g) * 4)
    if clusters:
        chosen = torch.randint(clusters, (n, m, 1), generator=g).expand(-1, -1, 2)
        centres, sides = centres.gather(1, chosen), sides.gather(1, chosen)
        centres = centres + 0.08 * sides * torch.randn(n, m, 2, generator=g)
        sides = sides * (0.12 * torch.randn(n, m, 2, generator=g)).exp()
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)
    return boxes, torch.rand(n, m, generator=g), torch.randint(groups, (n, m), generator=g)


def torchvision_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> list[Tensor]:
    return [tv.batched_nms(b, s, g, iou) for b, s, g in zip(boxes, scores, groups, strict=True)]


def pair(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, top: int) -> tuple[Callable, Callable]:
    """Ours and theirs, which must keep the same."""
    valid = torch.ones_like(scores, dtype=torch.bool)
    kept = nms(boxes, scores, groups, valid, iou=iou, top=top)
    for i in range(len(boxes)):
        # Group by group: `batched_nms` moves groups apart by adding offsets, which rounds the boxes of small inputs.
        exact = [torch.where(groups[i] == k)[0] for k in groups[i].unique()]
        exact = torch.cat([some[tv.nms(boxes[i, some], scores[i, some], iou)] for some in exact]).sort().values
        exact = exact[scores[i, exact].sort(descending=True, stable=True).indices][:top]
        assert torch.equal(kept.index[i, kept.valid[i]], exact)
    return (
        lambda: nms(boxes, scores, groups, valid, iou=iou, top=top),
        lambda: [k[:top] for k in torchvision_nms(boxes, scores, groups, iou)],
    )


def main() -> None:
    chosen = arguments(__doc__ or "")
    rows = []
    for name, n, m, groups, iou, top in (
        ("1 image, 5 levels x 1000 boxes, IoU 0.7", 1, 5000, 5, 0.7, 5000),
        ("the same, top 1000", 1, 5000, 5, 0.7, 1000),
        ("5 images x 1000 boxes, IoU 0.7", 5, 1000, 1, 0.7, 1000),
        ("5 images x 6000 boxes, IoU 0.7", 5, 6000, 1, 0.7, 6000),
        ("the same, top 300", 5, 6000, 1, 0.7, 300),
        ("1 image, 3000 candidates in 90 classes, IoU 0.5", 1, 3000, 90, 0.5, 100),
        ("8 images x 1000 boxes in 4 levels, IoU 0.7", 8, 1000, 4, 0.7, 500),
        ("1 image, 100 boxes in 3 classes, IoU 0.5", 1, 100, 3, 0.5, 100),
        ("1 image, 10 boxes, IoU 0.5", 1, 10, 1, 0.5, 10),
    ):
        for kind, clusters in (("random", 0), ("clustered", max(1, m // 25))):
            ours, theirs = pair(*example(n, m, groups, clusters=clusters), iou, top)
            times = compare({"ours": ours, "theirs": theirs}, repeats=chosen.repeats)
            rows.append(versus(f"{name}, {kind}", times["ours"], times["theirs"]))
    for name, n, m in (("1 image, 500 boxes", 1, 500), ("5 images x 1000 boxes", 5, 1000)):
        ours, theirs = pair(*example(n, m, 1, clusters=0, width=3), 0.7, m)
        times = compare({"ours": ours, "theirs": theirs}, repeats=chosen.repeats)
        rows.append(versus(f"{name}, IoU 0.7, in a column", times["ours"], times["theirs"]))
    header = ["exact NMS", "twostage, ms: median (minimum)", "torchvision, ms", "times faster"]
    command = "# Suppression\n\n`python benchmarks/bench_nms.py`"
    finish(f"{command}\n\n{hardware()}\n\n{table(header, rows)}", chosen.out)


if __name__ == "__main__":
    main()
