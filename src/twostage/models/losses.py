"""The losses of the two stages (Fast R-CNN, section 2.3; Faster R-CNN, section 3.1.2).

Letters: N images, S sampled anchors or regions, K classes. All arithmetic is float32, whatever the network's precision.
"""

from collections.abc import Callable
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

Losses = dict[str, Float[Tensor, ""]]

ReduceMean = Callable[[Float[Tensor, ""]], Float[Tensor, ""]]
"""From a number of this process to its mean over all processes that share a batch (`distributed`)."""


def no_reduce(number: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean over a single process."""
    return number


def one_over_sampled(valid: Bool[Tensor, "n s"], mean: ReduceMean) -> Float[Tensor, " n"]:
    """Each image's weight where every sampled row counts alike: one over their number, 1 where there are none.

    Several processes divide by their mean number, so that the mean of their losses is the loss of the whole batch.
    """
    count = mean(valid.sum().float())
    return (1 / count.where(count > 0, 1.0)).expand(len(valid))


def objectness_loss(
    logits: Float[Tensor, "n s"],
    positive: Bool[Tensor, "n s"],
    valid: Bool[Tensor, "n s"],
    weight: Float[Tensor, "n"],
    *,
    focal: tuple[float, float] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each sampled anchor, summed with each image's `weight` (one over N_cls).

    With `focal`, its gamma and alpha, well classified anchors count less (Lin et al. 2017, "Focal Loss").
    """
    loss = binary_focal(logits, positive.float(), *(focal or (0.0, -1.0)))
    return ((loss * valid).sum(dim=1) * weight).sum()


def binary_focal(
    logits: Float[Tensor, "*s"], goal: Float[Tensor, "*s"], gamma: float, alpha: float
) -> Float[Tensor, "*s"]:
    """-alpha_t (1 - p_t)^gamma log p_t (Focal Loss, equation 5); without alpha where it is below 0."""
    loss = binary_cross_entropy_with_logits(logits.float(), goal, reduction="none")
    if gamma == 0 and alpha < 0:
        return loss
    p = logits.float().sigmoid()
    loss = loss * _one_minus(p * goal + (1 - p) * (1 - goal)) ** gamma
    return loss if alpha < 0 else loss * (alpha * goal + (1 - alpha) * (1 - goal))


Overlap = Literal["giou", "diou", "ciou"]


def overlap_loss(
    boxes: Float[Tensor, "n s 4"],
    truth: Float[Tensor, "n s 4"],
    positive: Bool[Tensor, "n s"],
    weight: Float[Tensor, "n"],
    kind: Overlap,
) -> Float[Tensor, ""]:
    """1 less an overlap of the positives' boxes with their objects, summed with each image's `weight`.

    GIoU (Rezatofighi et al. 2019), DIoU and CIoU (Zheng et al. 2020), as torchvision computes them.
    """
    from torchvision import ops

    losses = {
        "giou": ops.generalized_box_iou_loss,
        "diou": ops.distance_box_iou_loss,
        "ciou": ops.complete_box_iou_loss,
    }
    # Boxes of other rows may be infinite, and their gradient would be NaN behind a `where`.
    unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    boxes, truth = (b.where(positive[..., None], unit).flatten(0, 1) for b in (boxes, truth))
    loss = losses[kind](boxes, truth, reduction="none").view_as(positive)
    return (loss.where(positive, 0.0).sum(dim=1) * weight).sum()


def box_loss(
    deltas: Float[Tensor, "n s 4"],
    goal: Float[Tensor, "n s 4"],
    positive: Bool[Tensor, "n s"],
    weight: Float[Tensor, "n"],
    *,
    beta: float,
) -> Float[Tensor, ""]:
    """Smooth L1 over the four deltas of the positives, summed with each image's `weight` (one over N_reg).

    |x| - beta / 2 where |x| > beta, else x^2 / (2 beta); beta 1 is the papers', 1/9 py-faster-rcnn's sigma 3.
    """
    loss = smooth_l1_loss(deltas.float(), goal, reduction="none", beta=beta).sum(dim=2)
    # where, not a product: a padded row's deltas may be infinite, and 0 * inf is NaN.
    return (loss.where(positive, 0.0).sum(dim=1) * weight).sum()


def mask_loss(
    logits: Float[Tensor, "n s m m"],
    goal: Float[Tensor, "n s m m"],
    positive: Bool[Tensor, "n s"],
    weight: Float[Tensor, "n"],
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each positive's own mask, its mean over the cells, summed with each image's `weight`.

    (Mask R-CNN, section 3.)
    """
    loss = binary_cross_entropy_with_logits(logits.float(), goal, reduction="none").mean(dim=(2, 3))
    return (loss.where(positive, 0.0).sum(dim=1) * weight).sum()


def class_loss(
    logits: Float[Tensor, "n s k1"],
    classes: Int[Tensor, "n s"],
    valid: Bool[Tensor, "n s"],
    weight: Float[Tensor, "n"],
    **how: Any,
) -> Float[Tensor, ""]:
    """Cross-entropy over K + 1 classes of the valid regions, summed with each image's `weight`; background is 0.

    `how` is that of `class_losses`.
    """
    return ((class_losses(logits, classes, **how) * valid).sum(dim=1) * weight).sum()


def class_losses(
    logits: Float[Tensor, "n s k1"],
    classes: Int[Tensor, "n s"],
    *,
    gamma: float = 0.0,
    smoothing: float = 0.0,
    class_weights: Float[Tensor, " k1"] | None = None,
) -> Float[Tensor, "n s"]:
    """The cross-entropy of every region, times (1 - p)^gamma, p the probability of its class (Focal Loss).

    `smoothing` is that of the labels (Szegedy et al. 2016, section 7), `class_weights` the weight of each class.
    """
    flat, goal = logits.float().flatten(0, 1), classes.flatten()
    loss = cross_entropy(flat, goal, class_weights, reduction="none", label_smoothing=smoothing)
    if gamma:
        loss = loss * _one_minus(flat.softmax(dim=1).gather(1, goal[:, None])[:, 0]) ** gamma
    return loss.view_as(classes)


def _one_minus(p: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """1 - p, kept above 0, where the gradient of a power below 1 is infinite."""
    return (1 - p).clamp(min=1e-7)
