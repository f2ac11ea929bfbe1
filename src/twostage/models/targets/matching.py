"""Which ground truth each box should learn (Faster R-CNN, section 3.1.2).

Letters: N images, A boxes to label (anchors or proposals), G ground-truth boxes, padded.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twostage.models.filled import filled
from twostage.ops.boxes import iou as box_iou

IGNORE, NEGATIVE = -2, -1
BLOCK = 16  # ground truths at once: N x A x G overlaps of a large image would take gigabytes


def match(
    boxes: Float[Tensor, "*n a 4"],
    truth: Float[Tensor, "n g 4"],
    valid: Bool[Tensor, "n g"],
    *,
    positive: float,
    negative: tuple[float, float],
    keep_best: bool,
    usable: Bool[Tensor, "n a"] | None = None,
) -> Int[Tensor, "n a"]:
    """Index of the ground truth each box is assigned to, or NEGATIVE, or IGNORE.

    A box is positive when its best IoU is at least `positive`, negative when that lies in [low, high) of `negative`,
    ignored otherwise. `keep_best` also makes the boxes positive that overlap a ground truth most, ties included, even
    below the threshold; otherwise small objects get no positives. Such a box is assigned to the ground truth that it
    overlaps most itself. An image without ground truth has no positives. Boxes that are not `usable` are ignored: the
    best box of a ground truth is the best usable one, as in py-faster-rcnn.
    """
    boxes = boxes.expand(len(truth), -1, -1)
    match_all = partial(_match, positive=positive, negative=negative, keep_best=keep_best)
    if boxes.device.type != "cpu":
        return match_all(boxes, truth, valid, usable)
    # On the CPU each image is matched with its own objects only, without the padding.
    images = []
    for i in range(len(boxes)):
        one, own = slice(i, i + 1), slice(filled(valid[i : i + 1]))
        usable_one = None if usable is None else usable[one]
        images.append(match_all(boxes[one], truth[one, own], valid[one, own], usable_one))
    return torch.cat(images)


def _match(
    boxes: Float[Tensor, "n a 4"],
    truth: Float[Tensor, "n g 4"],
    valid: Bool[Tensor, "n g"],
    usable: Bool[Tensor, "n a"] | None,
    *,
    positive: float,
    negative: tuple[float, float],
    keep_best: bool,
) -> Int[Tensor, "n a"]:
    best = boxes.new_zeros(boxes.shape[:2])
    index = torch.zeros_like(best, dtype=torch.int64)
    kept = torch.zeros_like(best, dtype=torch.bool)
    for start in range(0, truth.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        iou = box_iou(truth[:, block], boxes).mul_(valid[:, block, None])
        if usable is not None:
            iou.mul_(usable[:, None])
        if keep_best:
            # Exact comparison: tied boxes come from the same arithmetic and are bit-equal.
            most = iou.amax(dim=2, keepdim=True).clamp(min=torch.finfo(iou.dtype).tiny)
            kept |= (iou == most).any(dim=1)
        block_best, block_index = iou.max(dim=1)
        better = block_best > best
        index = torch.where(better, block_index + start, index)
        best = torch.maximum(best, block_best)
    low, high = negative
    label = torch.where((best >= low) & (best < high), NEGATIVE, IGNORE)
    label = torch.where((best >= positive) | kept, index, label)
    return label if usable is None else label.where(usable, IGNORE)
