"""How many operators a forward pass issues on a device, beside torchvision's: each is a launch where no graph holds it.

    python benchmarks/bench_operators.py --out benchmarks/results/operators.md

Counted without a GPU: both models run on the processor, ours with the plain layers and with the kernels of its
registered operators that every other device takes, and every primitive operator that computes is counted, one that only
looks at memory in another way is not. Those of torchvision's that hide several (`nms`, `nonzero`) count as one, and
each `nonzero` or read of a number makes the host wait. Calibrated random weights (`_calibrated.py`), pictures
at 320 x 416: ours do not depend on the size.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _pictures import photos, whence
from _timing import finish, hardware, table
from bench_inference import FASTER, found_by_peer, ours, peer
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import boxes as tv_boxes

from twostage.data.batch import stack_images
from twostage.inference.prepare import prepare
from twostage.ops.accelerator import nms, roi_align
from twostage.ops.cpu import packed

DEVICE_KERNELS = {"twostage.nms.default": nms.nms, "twostage.roi_align.default": roi_align.forward}
VIEWS = {
    *("view", "_unsafe_view", "_reshape_alias", "expand", "permute", "slice", "select", "unsqueeze", "squeeze"),
    *("transpose", "t", "alias", "as_strided", "split", "split_with_sizes", "unbind", "detach", "detach_", "unfold"),
    *("lift_fresh", "empty", "new_empty", "empty_like", "empty_strided"),
}
WAITS = ("nonzero", "_local_scalar_dense", "_unique2", "nms")


class Count(TorchDispatchMode):
    """Counts primitives by name, within the device kernels of our operators too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(func) in DEVICE_KERNELS:
            with self:
                return DEVICE_KERNELS[str(func)](*args, **kwargs)
        with self:  # what is made of others comes back as those
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if name in ("index", "index_put_"):  # each mask among the indices is turned into numbers
            self.names["nonzero"] += sum(x is not None and x.dtype == torch.bool for x in args[1])
        return func(*args, **kwargs)


def suppressed(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, iou: float) -> torch.Tensor:
    """torchvision's suppression by groups as a GPU does it: one by one only above 20000 coordinates, not above 4000."""
    one_by_one = boxes.numel() > 20000
    form = tv_boxes._batched_nms_vanilla if one_by_one else tv_boxes._batched_nms_coordinate_trick
    return form(boxes, scores, groups, iou)


def counted(call: Callable[[], object]) -> Counter[str]:
    """The primitives of a call that compute."""
    with Count() as count:
        call()
    return Counter({name: number for name, number in count.names.items() if name not in VIEWS})


def main() -> None:
    """Count, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    images = photos((320, 416), 8)
    theirs = peer(FASTER, images)
    theirs.transform.min_size, theirs.transform.max_size = (320,), 416
    # 4096 boxes enter the last suppression on a device.
    with patch.object(packed, "serves", lambda device, dtype: False):
        # A device has no forms to choose from, and a trial would be counted.
        model = prepare(ours(FASTER, theirs, candidates=4096).model, forms="first")
    rows = []
    for size in (1, 2, 8):
        some = images[:size]
        batch = stack_images(some)
        a = counted(lambda batch=batch: model.stages(batch))
        with patch.object(tv_boxes, "batched_nms", suppressed):
            b = counted(lambda some=some: found_by_peer(theirs, some))
        waits = [sum(count[name] for name in WAITS) for count in (a, b)]
        rows.append([f"batch {size}", a.total(), b.total(), f"{b.total() / a.total():.2f}", *waits])
    text = "\n\n".join(
        [
            "# Operators of a forward pass on a device",
            f"`python benchmarks/bench_operators.py`: {FASTER}. {whence()}",
            hardware(),
            table(["case", "twostage", "torchvision", "times fewer", "twostage waits", "torchvision waits"], rows),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
