"""The detectors of the studies: each is trained once for all studies that need it, and scored.

Letters: a case is a row of a paper's table; its value is VOC07 mAP in percent unless the study has another unit.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from twostage.atomic import write_text
from twostage.data.proposals import ProposalSet
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.experiments.begin import PROPOSALS, Setting, rcnn, trained
from twostage.inference.dataset import propose_split
from twostage.models.config import StagewiseConfig, TwoStageConfig
from twostage.models.heads.bodies import TwoMLPHead
from twostage.models.heads.box import BoxHead
from twostage.models.proposals.rpn import RPN
from twostage.models.stagewise import SVMHead
from twostage.models.two_stage import TwoStage
from twostage.models.zoo import named
from twostage.training.stagewise.fit import FitSettings
from twostage.training.stagewise.regions import images_of, regions_of
from twostage.training.stagewise.train import Bounds, fit_some

RESULT = "result.json"


@dataclass(frozen=True)
class Bench:
    """One seed of a comparison; its training runs lie under the setting's `runs/`, and are not repeated."""

    setting: Setting
    seed: int

    def train(self, name: str, model: str, **changes: Any) -> Path:
        """The weights of a detector trained from the shared backbone, or those of an earlier study."""
        folder = self.setting.root / "runs" / f"{name}-{self.seed}"
        done = folder / RESULT
        if not done.exists():
            result = trained(self.setting, folder, model, seed=self.seed, **changes)
            write_text(done, json.dumps({**result, "weights": str(Path(result["weights"]).relative_to(folder))}))
        return folder / json.loads(done.read_text(encoding="utf-8"))["weights"]

    def joint(self, **fields: Any) -> Path:
        """Faster R-CNN trained jointly, with fields that differ from the common ones."""
        name = "-".join(["joint", *(f"{k}_{v}" for k, v in fields.items())])
        return self.train(_plain(name), "faster_rcnn_tiny", model_fields=fields)

    def fast(self, **changes: Any) -> Path:
        """Fast R-CNN on selective search's proposals."""
        name = "-".join(["fast", *(f"{k}_{v}" for k, v in changes.items())])
        changes = {"proposals": self.setting.root / PROPOSALS, **changes}
        return self.train(_plain(name), "fast_rcnn_tiny", **changes)

    def alternating(self) -> Path:
        """Faster R-CNN in four steps."""
        twice = 2 * self.setting.options.minutes
        return self.train("alternating", "faster_rcnn_tiny", scheme="alternating", minutes=twice)

    def detector(self, weights: Path, **fields: Any) -> Detector:
        """A trained detector, with other fields at test."""
        return Detector.load(weights, device=self.setting.options.device, **fields)

    def score(self, detector: Detector | Path, proposals: Path | ProposalSet | None = None) -> float:
        """VOC07 mAP on the validation split, in percent; on proposals from elsewhere where they are given."""
        if isinstance(detector, Path):
            detector = self.detector(detector)
        results = detector.detect_dataset(self.setting.val, proposals=proposals)
        return 100 * evaluate(self.setting.truth, results, metric="voc07").scores.metrics["voc07"]

    def propose(self, detector: Detector, *, top: int, keep: int) -> ProposalSet:
        """The proposals of a detector's RPN on the validation split: `top` before NMS, `keep` after it."""
        return propose_split(detector.prepared, self.setting.val, top=top, keep=keep)

    def rcnn(self) -> Detector:
        """R-CNN, trained from the shared backbone."""
        return self._held(rcnn(self.setting, self.seed), "rcnn_tiny")

    def with_svms(self, detector: Detector) -> Detector:
        """A Fast R-CNN with SVMs and ridge regressors, trained on its own features (Fast R-CNN, section 5.4)."""
        options, train = self.setting.options, self.setting.train
        model = svms_on(cast(TwoStage, detector.model))
        regions = [regions_of(train, i, self.setting.train_proposals, options.windows) for i in range(len(train))]
        bounds, fitting = Bounds(options.learn_images, options.windows, self.seed), FitSettings(seed=self.seed)
        fit_some(model, train, images_of(train), regions, bounds, fitting)
        return self._held(model, detector.name)

    def with_softmax(self, detector: Detector) -> Detector:
        """The same detector scored by the softmax of its fine-tuned network in the place of its SVMs."""
        model = cast(TwoStage, detector.model)
        head = cast(SVMHead, model.head)
        softmax = SVMHead("softmax", head.regions, head.body, head.classes)
        softmax.svms, softmax.ridges = head.svms, head.ridges
        config = replace(model.config, postprocess=replace(model.config.postprocess, score_threshold=0.01))
        return self._held(_with_head(model, config, softmax), detector.name)

    def _held(self, model: TwoStage, name: str) -> Detector:
        return Detector(model, name, self.setting.train.names, device=self.setting.options.device)


def svms_on(model: TwoStage) -> TwoStage:
    """A Fast R-CNN whose head has SVMs and ridge regressors on the same features, not yet trained."""
    box = cast(BoxHead, model.head)
    own = cast(TwoStageConfig, model.config)
    postprocess = cast(StagewiseConfig, named("rcnn_tiny")).postprocess
    config = replace(own, image=replace(own.image, divisor=1), postprocess=postprocess)
    head = SVMHead("svm", box.regions, cast(TwoMLPHead, box.body), box.classes)
    return _with_head(model, config, head).to(box.classes.weight.device).eval()


def _with_head(model: TwoStage, config: TwoStageConfig | StagewiseConfig, head: SVMHead) -> TwoStage:
    return TwoStage(config, model.num_classes, backbone=model.backbone, rpn=None, head=head)


def without_boxes(detector: Detector) -> Detector:
    """The detector with box deltas of 0: boxes are the proposals."""
    _zero(cast(BoxHead, detector.model.head).deltas)
    return detector


def without_ranking(detector: Detector, seed: int) -> Detector:
    """The detector with random objectness: proposals are drawn from all anchors (Faster R-CNN, table 2, "no cls")."""
    g = torch.Generator().manual_seed(seed)

    def draw(_module: nn.Module, _inputs: Any, predictions: Any) -> Any:
        return predictions._replace(logits=[torch.rand(x.shape, generator=g).to(x.device) for x in predictions.logits])

    cast(RPN, detector.model.rpn).register_forward_hook(draw)
    return detector


def without_regression(detector: Detector) -> Detector:
    """The detector whose proposals are the anchors themselves (table 2, "no reg")."""
    _zero(cast(RPN, detector.model.rpn).deltas)
    return detector


@torch.no_grad()
def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    layer.weight.zero_()
    cast(nn.Parameter, layer.bias).zero_()


def _plain(name: str) -> str:
    """A name that can be a folder's."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
