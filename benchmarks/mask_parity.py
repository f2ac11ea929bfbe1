"""torchvision's Mask R-CNNs and ours with the same weights: the same boxes, masks and pasted pixels?

    python benchmarks/mask_parity.py --data FOLDER [--out benchmarks/results/mask_parity.md]

Random weights, calibrated on real photos (see `_calibrated`), are imported through `Detector.from_state_dict`. FOLDER
holds `coco-photos/images/`; by default it is `data` in the folder that TWOSTAGE_DATA names.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from _calibrated import calibrated
from _timing import finish, hardware, table
from torch import Tensor
from torchvision.models import detection

from twostage import Detector
from twostage.data.images import read_image
from twostage.inference.predictor import make_batch, run, to_arrays
from twostage.ops.masks import decode

MODELS = {
    "mask_rcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
    "mask_rcnn_resnet50_fpn_v2": detection.maskrcnn_resnet50_fpn_v2,
}
# Largest differences: of boxes, of probabilities on the same boxes, of pasted pixels. And in the median that of
# probabilities on each one's own boxes, which rounding has moved by a thousandth of a pixel.
PIXELS, PROBABILITY, SHARE, MEDIAN = 1e-2, 1e-4, 1e-4, 1e-5
PAIRED = 0.95  # of all detections are found by both
TIE = 1e-5  # detections whose scores differ by less may change places
HEADER = (
    *("model", "photos", "detections", "of both", "box max, px", "mask median", "mask max", "mask max, same boxes"),
    *("pixels that differ", "of", "share"),
)


@torch.inference_mode()
def compare(name: str, photos: list[Path], *, size: int) -> tuple[list[object], list[str]]:
    """A row of the table, and what misses the numbers to reach."""
    pictures = [read_image(path) for path in photos]
    tensors = [torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pictures]
    theirs = calibrated(MODELS[name], 80, tensors[:4])
    theirs.transform.min_size, theirs.transform.max_size = (size,), 2 * size
    ours = Detector.from_state_dict(
        theirs.state_dict(),
        source="torchvision",
        model=name,
        names=[str(k) for k in range(80)],
        device="cpu",
        size=size,
        max_size=2 * size,
    )
    probabilities: dict[str, Tensor] = {}
    theirs.roi_heads.mask_predictor.register_forward_hook(lambda _m, _i, out: probabilities.update(now=out.sigmoid()))
    boxes, masks, wrong, whole, count, asked, same_box = 0.0, [], 0, 0, 0, 0, 0.0
    for picture, tensor in zip(pictures, tensors, strict=True):
        found = theirs([tensor])[0]
        labels = found["labels"]
        expected = probabilities["now"][torch.arange(len(labels)), labels]
        batch = make_batch([picture], ours.model.fields)
        stages = run(ours.prepared, batch, output=ours.model.fields)
        mine = to_arrays(stages.found, batch.sizes, [picture.shape[:2]], ours.model.fields)[0]
        own = stages.found.masks
        assert own is not None
        pairs = _partners(found, mine)
        count += len(pairs)
        asked += max(len(labels), len(mine["scores"]))
        pasted = decode(mine["masks"])
        # Their own boxes through our head: what is left when no rounding has moved a box before.
        scale = torch.tensor([batch.sizes[0, 1] / picture.shape[1], batch.sizes[0, 0] / picture.shape[0]]).repeat(2)
        again = ours.prepared.head.mask(stages.maps, (found["boxes"] * scale)[None], (labels - 1)[None])[0].sigmoid()
        same_box = max(same_box, float((again - expected).abs().max()))
        for their, our in pairs:
            boxes = max(boxes, float((found["boxes"][their] - torch.from_numpy(mine["boxes"][our])).abs().max()))
            masks.append((expected[their] - own[0, our]).abs().flatten())
            wrong += int(((found["masks"][their, 0] >= 0.5).numpy() != pasted[our]).sum())
            whole += pasted[our].size
    faults = [f"{name}: of {asked} detections {count} have a partner"] if count < PAIRED * asked else []
    faults += [f"{name}: boxes differ by {boxes:.1e} px"] if boxes > PIXELS else []
    each = torch.cat(masks)
    faults += [f"{name}: probabilities differ by {same_box:.1e} on the same boxes"] if same_box > PROBABILITY else []
    faults += [f"{name}: probabilities differ by {each.median():.1e} in the median"] if each.median() > MEDIAN else []
    faults += [f"{name}: {wrong} of {whole} pixels differ"] if wrong > SHARE * whole else []
    told = (f"{value:.1e}" for value in (boxes, each.median(), each.max(), same_box))
    row = [name, len(photos), asked, count, *told, wrong, whole, f"{wrong / whole:.1e}"]
    return row, faults


def _partners(theirs: dict[str, Tensor], ours: dict[str, Any]) -> list[tuple[int, int]]:
    """Detections of both that are the same one: of a class and nearly a box, their scores a tie away."""
    pairs, free = [], set(range(len(ours["scores"])))
    for i in range(len(theirs["scores"])):
        for j in sorted(free, key=lambda j, i=i: abs(i - j)):  # type: ignore[misc]
            same = int(theirs["labels"][i]) - 1 == ours["class_ids"][j]
            near = abs(float(theirs["scores"][i]) - float(ours["scores"][j])) < TIE
            if same and near and float((theirs["boxes"][i] - torch.from_numpy(ours["boxes"][j])).abs().max()) < 1:
                free.remove(j)
                pairs.append((i, j))
                break
    return pairs


def main() -> None:
    """Compare both models and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = os.environ.get("TWOSTAGE_DATA")
    parser.add_argument("--data", type=Path, default=Path(home) / "data" if home else None, required=home is None)
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    photos = sorted((given.data / "coco-photos" / "images").iterdir())[: given.photos]
    rows, faults = [], []
    for name in MODELS:
        row, missed = compare(name, photos, size=given.size)
        rows.append(row)
        faults += missed
    verdict = "\n".join(faults) or (
        f"Within {PIXELS} px, {MEDIAN} of probability in the median, {PROBABILITY} on the same boxes, "
        f"{SHARE} of all pixels."
    )
    finish(f"`python benchmarks/mask_parity.py`\n\n{hardware()}\n\n{table(HEADER, rows)}\n\n{verdict}", given.out)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
