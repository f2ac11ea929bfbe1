"""The head that R-CNN and SPPnet share: a linear SVM per class on fc7, a ridge regressor per class on pool5.

(R-CNN, sections 2.3 and 3.5 and appendix C; SPPnet, section 4.) With it they are two-stage detectors like the others;
their stages are trained one after the other by `training.stagewise`. Letters: N images, P regions per image, d numbers
of pool5, f of fc7, K classes.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from twostage.errors import UsageError
from twostage.models.component import short
from twostage.models.filled import filled
from twostage.models.heads.bodies import TwoMLPConfig, TwoMLPHead
from twostage.models.heads.box import BoxPredictions, Head, StagePredictions
from twostage.models.heads.postprocess import PostprocessConfig, Scored
from twostage.models.proposals.rpn import Proposals
from twostage.models.regions.pooling import RegionFeatures
from twostage.ops.boxes import precise
from twostage.ops.deltas import BoxCoder

Scores = Literal["svm", "softmax"]
FLOOR = 1 / (1 + math.e)
"""The score of a distance of -1 from the hyperplane, the margin: by default everything above it is a detection."""


@dataclass(frozen=True)
class SVMHeadConfig:
    """fc6 and fc7, and what scores a region: its SVMs, or the softmax of the fine-tuned network."""

    body: TwoMLPConfig = field(default_factory=TwoMLPConfig)
    scores: Scores = short("svm", "scores")


class SVMHead(Head):
    """`regions` gives pool5, `body` fc7; `svms` has a hyperplane per class, `ridges` four regressors per class.

    The logit of a class is a region's distance from its hyperplane, in the hyperplane's own unit: above 0 means the
    class. Scores of detections are their sigmoid, 0.5 at the hyperplane, and no calibrated probabilities. `classes`,
    with background first, is for fine-tuning and for `scores` "softmax", whose logits are log-odds.
    """

    def __init__(self, scores: Scores, regions: nn.Module, body: TwoMLPHead, classes: nn.Linear) -> None:
        super().__init__()
        self.scores = scores
        self.regions = regions
        self.body = body
        self.classes = classes
        num_classes = classes.out_features - 1
        self.svms = nn.Linear(body.fc7.out_features, num_classes)
        self.ridges = nn.Linear(body.fc6.in_features, 4 * num_classes)
        for layer in (self.svms, self.ridges):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: RegionFeatures, boxes: Float[Tensor, "n p 4"]) -> BoxPredictions:
        """Logits of K classes and deltas per class."""
        pool5, fc7 = self.vectors(features, boxes)
        logits = precise(self.svms(fc7))
        if self.scores == "softmax":
            logits = precise(self.classes(fc7)).softmax(dim=2)[..., 1:].logit()
        return BoxPredictions(boxes, logits, self.ridges(pool5).unflatten(2, (-1, 4)))

    def vectors(
        self, features: RegionFeatures, boxes: Float[Tensor, "n p 4"]
    ) -> tuple[Float[Tensor, "n p d"], Float[Tensor, "n p f"]]:
        """pool5, in the order that fc6 reads, and fc7."""
        regions = self.regions(features, boxes)
        return regions.permute(0, 1, 3, 4, 2).flatten(2), self.body(regions)

    def predict(self, features: RegionFeatures, proposals: Proposals, sizes: Int[Tensor, "n 2"]) -> StagePredictions:
        """Predictions for the proposals; a CPU skips padding, since every region may be a forward pass."""
        count = max(1, filled(proposals.valid))
        some = self(features, proposals.boxes[:, :count])
        missing = proposals.boxes.shape[1] - count
        return (BoxPredictions(*(pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) for x in some)),)

    def scored(self, predictions: StagePredictions, proposals: Proposals, config: PostprocessConfig) -> Scored:
        """Every region gives a box per class; those above the threshold compete within their class (section 2.2).

        By their distances from the hyperplanes; soft-NMS needs scores.
        """
        (stage,) = predictions
        soft, classes = config.soft_nms != "off", stage.logits.shape[2]
        scores = stage.logits.sigmoid() if soft else stage.logits
        floor = config.score_threshold if soft else _logit(config.score_threshold)
        return Scored(scores, stage.deltas, proposals, BoxCoder(), floor, classes, logits=not soft)

    def losses(self, *_args: object, **_options: object) -> NoReturn:
        """Raises UsageError: there is no common loss."""
        raise UsageError(NOT_TRAINED)


NOT_TRAINED = (
    "R-CNN and SPPnet are trained stage by stage and have no common loss: `twostage lineage DATA --only rcnn` (or "
    "sppnet, sppnet_5_scales) trains them. For end-to-end training choose fast_rcnn_tiny or a faster_rcnn_* model."
)


def _logit(share: float) -> float:
    return -math.inf if share <= 0 else math.inf if share >= 1 else math.log(share / (1 - share))
