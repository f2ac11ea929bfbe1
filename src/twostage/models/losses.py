"""The losses of the two stages (Fast R-CNN, section 2.3; Faster R-CNN, section 3.1.2).

Letters: N images, S sampled anchors or regions, K classes. All arithmetic is float32, whatever the network's precision.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

Losses = dict[str, Float[Tensor, ""]]

Mean = Callable[[Float[Tensor, ""]], Float[Tensor, ""]]
"""From a number of this process to its mean over all processes that share a batch (`training.distributed`)."""


def alone(number: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean over one process."""
    return number


def one_over_sampled(valid: Bool[Tensor, "n s"], mean: Mean) -> Float[Tensor, " n"]:
    """Each image's weight where every sampled row counts alike: one over their number, 1 where there are none.

    Several processes divide by their mean number, so that the mean of their losses is the loss of the whole batch.
    """
    count = mean(valid.sum().float())
    return (1 / count.where(count > 0, 1.0)).expand(len(valid))


def objectness_loss(
    logits: Float[Tensor, "n s"], positive: Bool[Tensor, "n s"], valid: Bool[Tensor, "n s"], weight: Float[Tensor, "n"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each sampled anchor, summed with each image's `weight` (one over N_cls)."""
    loss = binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="none")
    return ((loss * valid).sum(dim=1) * weight).sum()


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
    logits: Float[Tensor, "n s k1"], classes: Int[Tensor, "n s"], valid: Bool[Tensor, "n s"], weight: Float[Tensor, "n"]
) -> Float[Tensor, ""]:
    """Cross-entropy over K + 1 classes of the valid regions, summed with each image's `weight`; background is 0."""
    loss = cross_entropy(logits.float().flatten(0, 1), classes.flatten(), reduction="none").view_as(valid)
    return ((loss * valid).sum(dim=1) * weight).sum()
