"""Detections from hyperplanes and ridge regressors, and R-CNN and SPPnet as detectors like the others."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import make_model
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import nms as torchvisions_nms

from twostage.data.batch import GivenProposals, stack_images
from twostage.data.images import read_image
from twostage.data.proposals import ProposalSet
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.detector import Detector
from twostage.errors import DataError, MissingError, UsageError
from twostage.evaluation.evaluate import evaluate
from twostage.evaluation.results import Accumulator
from twostage.inference import test_time_augmentation
from twostage.models.stagewise import FLOOR
from twostage.models.two_stage import TwoStage, as_proposals
from twostage.ops.deltas import BoxCoder
from twostage.training import train

NAMES = ["circle", "square", "triangle", "star", "cross"]


@pytest.fixture(autouse=True)
def _no_gradients(no_gradients: None) -> None:
    """Nothing here is trained."""


def fill(model: nn.Module) -> None:
    """Stages as if they were fitted: distances from about -2 to 2."""
    nn.init.normal_(model.head.svms.weight, std=1.0)
    nn.init.normal_(model.head.ridges.weight, std=0.01)


def fitted(model: str, **fields: object) -> Detector:
    torch.manual_seed(0)
    sizes = {"regions.sizes": (96,), "regions.region": 31.0} if model == "sppnet_tiny" else {}
    detector = Detector.build(model, NAMES, device="cpu", proposals="sliding_window", **{**sizes, **fields})
    fill(detector.model)
    return detector


def boxes_on(count: int, width: float = 60, height: float = 40) -> torch.Tensor:
    corner = torch.rand(count, 2) * torch.tensor([width, height])
    return torch.cat([corner, corner + 10 + torch.rand(count, 2) * 15], dim=1)


@pytest.mark.parametrize("name", ["rcnn_tiny", "sppnet_tiny"])
@pytest.mark.parametrize("scores", ["svm", "softmax"])
def test_detections_are_those_of_a_loop_over_the_classes(name: str, scores: str) -> None:
    torch.manual_seed(0)
    threshold = 1 / (1 + math.exp(0.2)) if scores == "svm" else 0.2
    sizes = {"regions.sizes": (96,)} if name == "sppnet_tiny" else {}
    model: TwoStage = make_model(name, 3, scores=scores, score_threshold=threshold, **sizes).eval()
    fill(model)
    image, boxes = torch.rand(3, 70, 90), boxes_on(40)
    given = GivenProposals(boxes[None], torch.zeros(1, 40), torch.ones(1, 40, dtype=torch.bool))
    batch = stack_images([image], divisor=1)
    batch = replace(batch, proposals=given)
    found = model(batch)
    head, features = model.head, model.head.fuse_features(model.features(batch))
    pool5, fc7 = (x[0] for x in head.vectors(features, boxes[None]))
    score = head.svms(fc7) if scores == "svm" else head.classes(fc7).softmax(1)[:, 1:]
    floor = -0.2 if scores == "svm" else 0.2
    moved = BoxCoder().decode(head.ridges(pool5).view(-1, 3, 4), boxes[:, None])
    moved = moved.clamp(min=0).minimum(torch.tensor([90.0, 70, 90, 70]))
    expected = []
    for k in range(3):
        above = score[:, k] > floor
        above &= (moved[:, k, 2:] - moved[:, k, :2] >= 1).all(dim=1)
        rows = above.nonzero()[:, 0]
        left = rows[torchvisions_nms(moved[rows, k], score[rows, k], 0.3)].tolist()
        expected += [(-float(score[row, k]), row, k) for row in left]
    expected.sort()
    assert expected
    count = int(found.valid.sum())
    pairs = zip(found.labels[0, :count].tolist(), found.proposals[0, :count].tolist(), strict=True)
    assert list(pairs) == [(k, row) for _, row, k in expected[:100]]
    rows, classes = (torch.tensor([entry[i] for entry in expected[:100]]) for i in (1, 2))
    own = score[rows, classes]
    torch.testing.assert_close(found.scores[0, :count], own.sigmoid() if scores == "svm" else own)
    torch.testing.assert_close(found.boxes[0, :count], moved[rows, classes])
    for count in (1, 40):  # padding alone
        none = GivenProposals(boxes[None, :count], torch.zeros(1, count), torch.zeros(1, count, dtype=torch.bool))
        assert not model(replace(batch, proposals=none)).valid.any()


def test_everything_inside_the_margin_is_a_detection_and_a_class_without_objects_never_is() -> None:
    """Above a distance of -1; an SVM that could not be trained gives -1 everywhere."""
    model = make_model("rcnn_tiny", 2).eval()
    nn.init.constant_(model.head.svms.bias, -1.0)
    model.head.svms.bias[1] = math.nextafter(-1.0, 0.0) + 1e-6
    batch = stack_images([torch.rand(3, 70, 90)], divisor=1)
    given = GivenProposals(boxes_on(9)[None], torch.zeros(1, 9), torch.ones(1, 9, dtype=torch.bool))
    found = model(replace(batch, proposals=given))
    assert found.labels[found.valid].unique().tolist() == [1]
    assert found.scores[found.valid].tolist() == pytest.approx([FLOOR] * int(found.valid.sum()), abs=1e-6)


def test_soft_nms_takes_scores_and_not_distances() -> None:
    model = make_model("rcnn_tiny", 2, soft_nms="linear").eval()
    fill(model)
    batch = stack_images([torch.rand(3, 70, 90)], divisor=1)
    given = GivenProposals(boxes_on(30)[None], torch.zeros(1, 30), torch.ones(1, 30, dtype=torch.bool))
    found = model(replace(batch, proposals=given))
    scores = found.scores[found.valid]
    assert len(scores)
    assert ((scores > FLOOR) & (scores <= 1)).all()


def test_padding_is_not_computed_on_a_cpu() -> None:
    model = make_model("rcnn_tiny", 3).eval()
    fill(model)
    batch = stack_images([torch.rand(3, 70, 90)], divisor=1)
    valid = torch.arange(500)[None] < 4
    boxes = torch.zeros(1, 500, 4)
    boxes[:, :4] = boxes_on(4)
    seen = []
    model.head.regions.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1].shape[1]))
    proposals = as_proposals(GivenProposals(boxes, torch.zeros(1, 500), valid), batch.sizes)
    (stage,) = model.head.predict(model.head.fuse_features(model.features(batch)), proposals, batch.sizes)
    assert seen == [4]
    assert stage.logits.shape == (1, 500, 3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("stagewise") / "scenes", train=1, val=3)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.mark.parametrize("name", ["rcnn_tiny", "sppnet_tiny", "sppnet_tiny_5_scales"])
def test_saved_loaded_and_evaluated_as_the_model_itself(name: str, scenes: Path, tmp_path: Path) -> None:
    more = {"regions.sizes": (64, 80, 96, 120, 160), "regions.region": 31.0} if "5" in name else {}
    made = fitted(name, rpn_keep_test=30, **more)
    made.save(tmp_path / "w.safetensors", metrics={"AP": 0.5})
    detector = Detector.load(tmp_path / "w.safetensors", device="cpu")
    assert (detector.name, detector.names, detector.model.config) == (name, tuple(NAMES), made.model.config)

    val = open_dataset(scenes, split="val")
    given = ProposalSet.of(((boxes_on(30, 150, 120).numpy(), -np.arange(30.0)) for _ in range(3)), "drawn")
    gathered = Accumulator()
    for index in range(3):
        image = torch.from_numpy(read_image(val.path(index))).permute(2, 0, 1) / 255
        boxes = torch.from_numpy(given.best(index, 30)[0])
        batch = stack_images([image], divisor=1)
        proposals = GivenProposals(boxes[None], torch.zeros(1, 30), torch.ones(1, 30, dtype=torch.bool))
        found = made.model(replace(batch, proposals=proposals))
        valid = found.valid[0]
        gathered.add(index, *(x[0][valid].numpy() for x in (found.boxes, found.scores, found.labels)))
    expected = gathered.results()
    results = detector.detect_dataset(val, proposals=given, workers=0, batch=2)
    assert len(results) == len(expected) > 3
    for index in range(3):
        rows, theirs = results.images == index, expected.images == index
        np.testing.assert_allclose(results.scores[rows], expected.scores[theirs], atol=1e-5)
        np.testing.assert_allclose(results.boxes[rows], expected.boxes[theirs], atol=1e-2)
    report = detector.evaluate(val, proposals=given, workers=0)
    assert report.metrics == evaluate(val, results, score_floor=FLOOR).metrics


def test_predicts_on_proposals_of_its_own_source(scenes: Path) -> None:
    val = open_dataset(scenes, split="val")
    detector = fitted("rcnn_tiny", rpn_keep_test=40)
    one = detector.predict(val.path(0), conf=0.5)
    assert len(one)
    assert (one.scores > 0.5).all()  # on the class's side of its hyperplane
    results = detector.detect_dataset(val, workers=0, conf=0.5)
    np.testing.assert_allclose(np.sort(results.scores[results.images == 0]), np.sort(one.scores), atol=1e-5)
    stages = detector.trace(val.path(0)).stages
    assert stages.proposals.boxes.shape == (1, 40, 4)
    assert stages.predictions[0].logits.shape == (1, 40, 5)
    flipped = detector.predict(val.path(0), views=test_time_augmentation.TestTimeAugmentation(flip=True))
    assert len(flipped)
    with pytest.raises(UsageError, match="at their own size"):
        detector.predict(val.path(0), views=test_time_augmentation.TestTimeAugmentation(scales=(1.0, 2.0)))


def test_selective_search_is_the_default_and_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    detector = Detector.build("rcnn_tiny", NAMES, device="cpu")
    with pytest.raises(MissingError, match=r"pip install 'twostage\[lineage\]'"):
        detector.predict(np.zeros((40, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 300}, "no field 'size'"),
        ({"roi": "pool"}, "no field 'roi'"),
        ({"proposals": "network"}, "no RPN"),
        ({"scores": "logits"}, "scores cannot be"),
    ],
)
def test_fields_that_it_does_not_have(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Detector.build("sppnet_tiny", NAMES, **fields)


@pytest.mark.parametrize("name", ["rcnn_tiny", "sppnet_tiny", "sppnet_tiny_5_scales"])
def test_a_file_of_the_first_format_loads(name: str, tmp_path: Path) -> None:
    """Its header had the classes and SPPnet's sizes; its network stood under `net`."""
    sizes = {"rcnn_tiny": None, "sppnet_tiny": [96], "sppnet_tiny_5_scales": [67, 80, 96, 121, 167]}[name]
    more = {} if sizes is None else {"regions.sizes": sizes, "regions.region": 224 * 96 / 688}
    model = fitted(name, **more).model
    state = {}
    for key, value in model.state_dict().items():
        for prefix in ("head.regions.backbone.", "backbone.body."):
            key = key.replace(prefix, "net.backbone.")
        key = key.replace("head.body.", "net.body.").replace("head.classes.", "net.classes.").removeprefix("head.")
        state[key] = value.contiguous()
    path = tmp_path / "weights.safetensors"
    save_file(state, path, metadata={"twostage-lineage": json.dumps({"names": NAMES, "sizes": sizes})})
    detector = Detector.load(path, device="cpu", proposals="sliding_window")
    assert (detector.name, detector.names) == (name, tuple(NAMES))
    assert detector.model.config == fitted(name, **more).model.config
    own = detector.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("header", ["x", "[]", '{"names": ["a"]}', '{"names": ["a"], "sizes": [1, 2]}'])
def test_a_damaged_file_of_the_first_format(header: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"svms.weight": torch.zeros(1, 2)}, path, metadata={"twostage-lineage": header})
    with pytest.raises(DataError, match="does not describe an R-CNN or SPPnet"):
        Detector.load(path)


def test_training_end_to_end_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stage by stage"):
        train(tmp_path / "nothing", model="rcnn_tiny", epochs=1)
    with pytest.raises(UsageError, match="stage by stage"):
        make_model("rcnn_tiny", 2).head.losses()
