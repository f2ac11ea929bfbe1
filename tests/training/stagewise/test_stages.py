"""SVMs, regressors and fine-tuning: the stages of the training of R-CNN and SPPnet."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC

from twostage.data.batch import stack_proposals
from twostage.data.dataset import Dataset
from twostage.data.proposals import ProposalSet
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.errors import DataError
from twostage.experiments.small import rcnn_model, sppnet_model
from twostage.models.proposals.sources import Source, propose
from twostage.models.sppnet import ImageScales
from twostage.models.stagewise import SVMHead
from twostage.models.two_stage import TwoStage
from twostage.training.stagewise.fit import FitSettings, batch_of, fit_stages, vectors
from twostage.training.stagewise.regions import Cache, images_of, regions_of
from twostage.training.stagewise.ridge import fit_ridge
from twostage.training.stagewise.svm import SvmSettings, fit_svm
from twostage.training.stagewise.train import Bounds, crops, pretrain, train_stages
from twostage.training.stagewise.tune import TuneSettings, labels_of, tune

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_scenes(tmp_path_factory.mktemp("s") / "scenes", train=6, val=2), split="train")


@pytest.fixture(scope="module")
def windows(scenes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> ProposalSet:
    return propose(Source("sliding_window"), scenes, folder=tmp_path_factory.mktemp("c"))


def head_of(model: TwoStage) -> SVMHead:
    assert isinstance(model.head, SVMHead)
    return model.head


def clouds(features: int = 12) -> tuple[np.ndarray, list[np.ndarray]]:
    """Positives, and negatives of 30 images, most of them far away."""
    direction = RNG.standard_normal(features)
    positives = RNG.standard_normal((60, features)) + 1.2 * direction
    negatives = [RNG.standard_normal((100, features)) - RNG.uniform(0, 2) * direction for _ in range(30)]
    return positives.astype(np.float32), [x.astype(np.float32) for x in negatives]


def test_mining_gives_the_svm_of_all_negatives() -> None:
    """The reference is scikit-learn on all vectors at once, which mining avoids."""
    positives, negatives = clouds()
    settings = SvmSettings(c=0.01, fresh=300)
    weight, offset = fit_svm(positives, negatives, settings, name="x")
    everything = np.concatenate([positives, *negatives])
    scale = settings.norm / np.linalg.norm(everything, axis=1).mean()
    theirs = LinearSVC(
        C=settings.c, loss="hinge", class_weight={1: 2.0}, intercept_scaling=10.0, max_iter=200000, random_state=0
    ).fit(everything * scale, np.repeat([1, 0], [len(positives), len(everything) - len(positives)]))
    ours = everything @ weight + offset
    np.testing.assert_allclose(ours, theirs.decision_function(everything * scale), atol=0.02)


def test_a_class_without_objects_is_logged_and_never_detected(caplog: pytest.LogCaptureFixture) -> None:
    _, negatives = clouds()
    weight, offset = fit_svm(np.zeros((0, 12), np.float32), negatives, SvmSettings(), name="yeti")
    assert "yeti: no object" in caplog.text
    assert (negatives[0] @ weight + offset == -1).all()


def test_a_class_without_negatives() -> None:
    weight, offset = fit_svm(np.ones((3, 4), np.float32), [np.zeros((0, 4), np.float32)], SvmSettings(), name="x")
    assert np.isfinite(weight).all()
    assert np.isfinite(offset)


def test_ridge_agrees_with_scikit_learn_and_the_normal_equations() -> None:
    x, y = RNG.standard_normal((50, 7)), RNG.standard_normal((50, 4))
    weight, offset = fit_ridge(x, y)
    theirs = Ridge(alpha=1000.0).fit(x, y)
    np.testing.assert_allclose(weight, theirs.coef_, rtol=1e-5)
    np.testing.assert_allclose(offset, theirs.intercept_, rtol=1e-5)
    centred, goal = x - x.mean(0), y - y.mean(0)
    exact = np.linalg.solve(centred.T @ centred + 1000 * np.eye(7), centred.T @ goal).T
    np.testing.assert_allclose(weight, exact, rtol=1e-4, atol=1e-7)
    assert not fit_ridge(x[:0], y[:0])[0].any()


def test_regions_have_their_overlaps(scenes: Dataset, windows: ProposalSet) -> None:
    found = regions_of(scenes, 0, windows, 50)
    objects = scenes.objects(0)
    assert found.objects == len(objects.boxes)
    np.testing.assert_array_equal(found.boxes[: found.objects], objects.boxes)
    np.testing.assert_allclose(found.best[: found.objects], 1)
    np.testing.assert_array_equal(found.truth[: found.objects], np.arange(found.objects))
    np.testing.assert_allclose(found.overlap.max(axis=1), found.best)
    own = found.overlap[np.arange(found.objects), objects.labels]
    np.testing.assert_allclose(own, 1)
    rows = np.arange(found.objects)
    np.testing.assert_array_equal(labels_of(found, rows, 0.5), objects.labels + 1)


def test_crops_are_objects_and_background(scenes: Dataset) -> None:
    found = crops(scenes, 0)
    for index in range(len(scenes)):
        regions = regions_of(scenes, index, found, 1000)
        assert (regions.best[regions.objects :] > 0.5).sum() >= 3 * regions.objects
        assert (regions.best < 0.3).sum() > 10
    np.testing.assert_array_equal(crops(scenes, 0).boxes, found.boxes)


def test_fine_tuning_changes_every_weight_and_is_deterministic(scenes: Dataset) -> None:
    def network(model: TwoStage) -> list[torch.Tensor]:
        """The parameters without those of the SVMs and regressors."""
        head = head_of(model)
        return [p for part in (head.regions, head.body, head.classes) for p in part.parameters()]

    def run() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = rcnn_model(5)
        settings = TuneSettings(steps=3, positives=8, negatives=8, images=4, negative=(0.0, 0.3))
        assert pretrain(model, scenes, settings) == 3
        return network(model)

    torch.manual_seed(0)
    before, one, two = network(rcnn_model(5)), run(), run()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, one, strict=True) if a.ndim > 1)


def test_fine_tuning_without_objects_is_an_error() -> None:
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(DataError, match="No image has an object"):
        tune(layer, list(layer.parameters()), lambda i, b: b, [], TuneSettings(steps=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rcnn", "sppnet"])
def test_from_a_network_to_a_detector(kind: str, scenes: Dataset, windows: ProposalSet) -> None:
    """On the training images the SVM of an object's own class gives a higher score than the others."""
    torch.manual_seed(0)
    model = rcnn_model(5)
    tuning = TuneSettings(steps=4, positives=8, negatives=8, images=4)
    common = (scenes, windows, Bounds(4, 40), tuning, FitSettings(pair=0.3))
    if kind == "rcnn":
        train_stages(model, *common)
    else:
        model = sppnet_model(model, 96, five=False)
        assert isinstance(model.backbone, ImageScales)
        convolutions = {k: v.clone() for k, v in model.backbone.body.state_dict().items()}
        train_stages(model, *common)
        for name, value in model.backbone.body.state_dict().items():
            assert torch.equal(value, convolutions[name])  # only fc6, fc7 and the classifier are trained
    head = head_of(model)
    assert head.svms.weight.abs().sum() > 0
    assert head.ridges.weight.abs().sum() > 0
    index = Bounds(4, 40).of(scenes)[0]
    objects = scenes.objects(index)
    image, boxes = images_of(scenes)[index], torch.from_numpy(objects.boxes.copy())
    given = stack_proposals([torch.cat([boxes, torch.ones(len(boxes), 1)], dim=1)], len(boxes))
    with torch.no_grad():
        found = model.stages(replace(batch_of(model, image), proposals=given)).detections
        _, fc7 = vectors(model, image, boxes)
    assert found.boxes.isfinite().all()
    right = head.svms(fc7)[torch.arange(len(objects.labels)), torch.from_numpy(objects.labels.copy())]
    assert right.mean() > head.svms(fc7).mean() + 0.02


def test_stages_do_not_depend_on_images_without_regions(scenes: Dataset, windows: ProposalSet) -> None:
    torch.manual_seed(0)
    model = rcnn_model(5).eval()
    regions = [regions_of(scenes, i, windows, 20) for i in range(3)]
    nothing = regions[0]._replace(
        boxes=regions[0].boxes[:0],
        objects=0,
        labels=regions[0].labels[:0],
        best=regions[0].best[:0],
        truth=regions[0].truth[:0],
        overlap=regions[0].overlap[:0],
    )
    fit_stages(model, images_of(scenes), [*regions, nothing], scenes.names, FitSettings())
    assert head_of(model).svms.weight.isfinite().all()


def test_the_cache_is_bounded() -> None:
    made: list[int] = []

    def make(index: int) -> str:
        made.append(index)
        return "x" * 10

    cache = Cache(make, len, limit=25)
    for index in (0, 1, 0, 2, 0, 1):
        assert cache[index] == "x" * 10
    assert made == [0, 1, 2, 1]  # 1 was the least recently used
