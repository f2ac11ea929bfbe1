"""What studies are made of: detectors trained once for all studies that want them, and scored.

Letters: a case is a row of a paper's table; its value is VOC07 mAP in percent where nothing else is said.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from twostage.atomic import write_text
from twostage.data.proposals import ProposalSet
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.evaluation.results import Accumulator, Results
from twostage.experiments.begin import PROPOSALS, Setting, rcnn, trained
from twostage.experiments.small import stagewise
from twostage.inference.prepare import prepare
from twostage.inference.proposing import network_proposals
from twostage.models.fields import Fields
from twostage.models.heads.bodies import TwoLayers
from twostage.models.heads.box import BoxHead
from twostage.models.proposals.rpn import RPN
from twostage.models.stagewise.detector import Stagewise
from twostage.models.stagewise.nets import Hidden
from twostage.models.two_stage import TwoStage
from twostage.training.stagewise.fit import FitSettings
from twostage.training.stagewise.regions import pictures_of, regions_of
from twostage.training.stagewise.train import Bounds, fit_some

RESULT = "result.json"


@dataclass(frozen=True)
class Bench:
    """One seed of a comparison; what is trained lies under the setting's `runs/`, and is trained once."""

    setting: Setting
    seed: int

    def folder(self, name: str) -> Path:
        """Where what is called so is, or will be."""
        return self.setting.root / "runs" / f"{name}-{self.seed}"

    def train(self, name: str, model: str, **changes: Any) -> Path:
        """The weights of a detector trained from the backbone; of an earlier study where it has them."""
        folder = self.folder(name)
        done = folder / RESULT
        if not done.exists():
            result = trained(self.setting, folder, model, seed=self.seed, **changes)
            write_text(done, json.dumps({**result, "weights": str(Path(result["weights"]).relative_to(folder))}))
        return folder / json.loads(done.read_text(encoding="utf-8"))["weights"]

    def joint(self, **fields: Any) -> Path:
        """Faster R-CNN with fields that differ from the common ones, trained jointly."""
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

    def score(self, detector: Detector, proposals: Path | ProposalSet | None = None) -> float:
        """Its VOC07 mAP on the validation split, in percent; on proposals from elsewhere where some are given."""
        assert self.setting.splits.val is not None
        return self.mean_ap(detector.detect_dataset(self.setting.splits.val, proposals=proposals))

    def mean_ap(self, results: Results) -> float:
        """VOC07 mAP in percent."""
        assert self.setting.splits.truth is not None
        return 100 * evaluate(self.setting.splits.truth, results, metric="voc07").scores.metrics["voc07"]

    def proposals(self, model: TwoStage, fields: Fields) -> ProposalSet:
        """What a model's network proposes on the validation split, with other fields."""
        assert self.setting.splits.val is not None
        fast = prepare(model)
        assert fast.rpn is not None
        fast.fields = fast.rpn.fields = fields
        return network_proposals(fast, self.setting.splits.val)

    @torch.inference_mode()
    def score_stagewise(self, model: Stagewise) -> float:
        """The same of a detector trained stage by stage, on selective search's proposals."""
        val, gathered = self.setting.splits.val, Accumulator()
        assert val is not None
        for index in range(len(val)):
            image = torch.from_numpy(val.image(index)).permute(2, 0, 1)
            boxes = torch.from_numpy(self.setting.val.best(index, self.setting.options.windows)[0])
            found = model(image, boxes)
            gathered.add(index, *(value.cpu().numpy() for value in found[:3]))
        return self.mean_ap(gathered.results())

    def rcnn(self) -> Stagewise:
        """R-CNN, tuned from the backbone."""
        return rcnn(self.setting, self.seed)

    def stages_behind(self, detector: Detector) -> Stagewise:
        """SVMs and regressors that learn from a Fast R-CNN's own vectors (Fast R-CNN, section 5.4)."""
        options, train = self.setting.options, self.setting.splits.train
        model = stagewise(FastNet(detector.model), len(self.setting.names))
        regions = [regions_of(train, i, self.setting.train, options.windows) for i in range(len(train))]
        bounds, fitting = Bounds(options.learn_images, options.windows, self.seed), FitSettings(seed=self.seed)
        fit_some(model, train, pictures_of(train), regions, bounds, fitting)
        return model


class FastNet(nn.Module):
    """A Fast R-CNN as a network whose vectors SVMs and regressors can learn from; see `lineage.nets.RegionNet`."""

    def __init__(self, model: TwoStage) -> None:
        super().__init__()
        self.model = model.eval()
        self.backbone = model.backbone
        self.head = cast(BoxHead, model.head)
        layers = cast(TwoLayers, self.head.body)
        self.body = Hidden(layers.fc6.in_features, layers.fc6.out_features, 0.0)
        self.body.fc6, self.body.fc7 = layers.fc6, layers.fc7
        self.classes = self.head.classes

    def pool5(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Float[p d]: the pooled regions of a normalised picture, in the order in which fc6 reads them."""
        shape = self.model.fields.resizing.shape(image.shape[1], image.shape[2])
        scale = torch.tensor([shape[1] / image.shape[2], shape[0] / image.shape[1]]).repeat(2)
        resized = nn.functional.interpolate(image[None], shape, mode="bilinear")
        regions = self.head.regions(self.model.backbone(resized), (boxes * scale).to(image.device)[None])
        return regions[0].permute(0, 2, 3, 1).flatten(1)


def without_boxes(detector: Detector) -> Detector:
    """The detector with boxes that stay where the proposals are."""
    with torch.no_grad():
        deltas = cast(BoxHead, detector.model.head).deltas
        deltas.weight.zero_()
        deltas.bias.zero_()
    return detector


def without_ranking(model: TwoStage, seed: int) -> TwoStage:
    """The model with random objectness: proposals are drawn from all anchors (Faster R-CNN, table 2, "no cls")."""
    assert model.rpn is not None
    g = torch.Generator().manual_seed(seed)

    def draw(_module: nn.Module, _inputs: Any, dense: Any) -> Any:
        return dense._replace(logits=[torch.rand(x.shape, generator=g).to(x.device) for x in dense.logits])

    cast(RPN, model.rpn).register_forward_hook(draw)
    return model


def without_regression(model: TwoStage) -> TwoStage:
    """The model whose proposals are the anchors themselves (table 2, "no reg")."""
    deltas = cast(RPN, model.rpn).deltas
    with torch.no_grad():
        deltas.weight.zero_()
        deltas.bias.zero_()  # type: ignore[union-attr]
    return model


def _plain(name: str) -> str:
    """A name that can be a folder's."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
