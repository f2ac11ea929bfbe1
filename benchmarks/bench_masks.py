"""Masks laid over a picture, beside torchvision's `paste_masks_in_image`; it fails where they are not the same pixels.

Run with `python benchmarks/bench_masks.py`.

100 smooth masks of 28 x 28 on a picture of 1333 x 800, boxes of 20 to 500 pixels. torchvision gives probabilities of
whole pictures, which its users compare with one half; ours gives run lengths.
"""

import sys

import numpy as np
import torch
from _timing import arguments, compare, finish, hardware, table, versus
from torchvision.models.detection.roi_heads import paste_masks_in_image

from twostage.ops.masks import decode
from twostage.ops.paste import paste

HEIGHT, WIDTH, MASKS, CELLS = 800, 1333, 100, 28
SHARE = 1e-6  # of all pixels that may differ


def example() -> tuple[np.ndarray, np.ndarray]:
    """Masks and boxes."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(MASKS, 1, 6, 6, generator=g)
    grids = torch.nn.functional.interpolate(coarse, (CELLS, CELLS), mode="bicubic")[:, 0].clamp(0, 1)
    middle = torch.rand(MASKS, 2, generator=g) * torch.tensor([WIDTH, HEIGHT])
    side = 20 * 25 ** torch.rand(MASKS, 2, generator=g)
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    boxes = torch.cat([middle - side / 2, middle + side / 2], dim=1).clamp(min=0).minimum(limit)
    return grids.numpy(), boxes.numpy()


def main() -> None:
    """Time the cases in turn and print the table."""
    chosen = arguments(__doc__ or "")
    masks, boxes = example()
    grids, corners = torch.from_numpy(masks)[:, None], torch.from_numpy(boxes)

    def theirs() -> np.ndarray:
        return (paste_masks_in_image(grids, corners, (HEIGHT, WIDTH))[:, 0] >= 0.5).numpy()

    cases = {
        "torchvision": theirs,
        "run lengths, its way": lambda: paste(masks, boxes, HEIGHT, WIDTH, way="rounded"),
        "run lengths, exact": lambda: paste(masks, boxes, HEIGHT, WIDTH),
    }
    expected = theirs()
    wrong = (decode(cases["run lengths, its way"]()) != expected).sum()
    times = compare(cases, repeats=chosen.repeats)
    rows = [versus(name, times[name], times["torchvision"]) for name in list(cases)[1:]]
    header = ("masks as", "ours, ms", "torchvision, ms", "times faster")
    told = f"{wrong} of {expected.size} pixels differ from torchvision's."
    command = "`python benchmarks/bench_masks.py`"
    finish(f"{command}\n\n{hardware()}\n\nMedian (minimum).\n\n{table(header, rows)}\n\n{told}", chosen.out)

    if wrong > SHARE * expected.size:
        sys.exit("more pixels differ than rounding can explain")


if __name__ == "__main__":
    main()
