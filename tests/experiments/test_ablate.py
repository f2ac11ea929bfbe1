"""`twostage ablate`: every study runs, is kept, and stands beside the papers' rows."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from twostage.cli import main
from twostage.data.recognise import open_dataset
from twostage.detector import Detector
from twostage.experiments import studies
from twostage.experiments.bench import svms_on, without_boxes, without_ranking, without_regression
from twostage.experiments.options import STUDIES
from twostage.training.stagewise.fit import vectors

pytestmark = pytest.mark.slow

NAMES = ["circle", "square", "triangle", "star", "cross"]


def test_every_study_has_its_papers_rows() -> None:
    assert set(studies.ALL) == set(STUDIES)
    assert all(study.papers and study.source and study.title for study in studies.ALL.values())


def arguments(scenes: Path, out: Path, *more: str) -> list[str]:
    call = ["ablate", str(scenes), "--out", str(out), "--minutes", "0.004", "--size", "64", "--windows", "20"]
    return [*call, "--learn-images", "3", "--quiet", "--json", *more]


def test_studies_run_and_resume(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that train little; all of them would take minutes. They are listed in the order of the papers."""
    out, some = tmp_path / "run", ("features", "svm", "multi_task")
    assert main(arguments(scenes, out, "--only", *reversed(some), "--seeds", "1")) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["studies"]) == list(some)
    for name in some:
        cases = result["studies"][name]["cases"]
        assert [case["case"] for case in cases] == list(studies.ALL[name].papers)
        for case in cases:
            assert 0 <= case["least"] <= case["mean"] <= case["most"] <= 100
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == 3
    assert "selective search" in page
    trained = sorted(path.name for path in (out / "runs").iterdir())
    assert trained == ["alternating-0", "fast-0", "fast-model_fields___box_lambda___0.0_-0", "fast-stagewise-0"]

    # The layer for boxes has learned, and nothing else.
    classes, after = (
        load_file(next((out / "runs" / name / "weights").glob("best.safetensors")))
        for name in ("fast-model_fields___box_lambda___0.0_-0", "fast-stagewise-0")
    )
    moved = {name for name in classes if not torch.equal(classes[name], after[name])}
    assert moved == {"head.deltas.weight", "head.deltas.bias"}

    # What is done is not done again, and is listed beside what is asked for now.
    (out / "results" / "features-0.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}
    assert main(["ablate", "--resume", str(out), "--only", "features", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["studies"] == result["studies"]
    assert before == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}


def test_more_seeds_of_a_run_that_is_done(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(arguments(scenes, out, "--only", "sampling", "--seeds", "1")) == 0
    first = json.loads(capsys.readouterr().out)["studies"]["sampling"]["cases"][1]["values"]
    monkeypatch.setattr(studies, "_seconds_of_128", lambda bench, images: images / 2)  # the rest need no measurement
    earlier = dict.fromkeys(studies.ALL["svm"].papers, 50.0)
    (out / "results" / "svm-0.json").write_text(json.dumps(earlier), encoding="utf-8")
    assert main(["ablate", "--resume", str(out), "--seeds", "3", "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    values = result["studies"]["sampling"]["cases"][1]["values"]
    assert len(values) == result["settings"]["seeds"] == 3
    assert values == [*first, 64.0, 64.0]
    # A study that is not asked for now is shown with the seeds that it has.
    assert [case["values"] for case in result["studies"]["svm"]["cases"]] == [[50]] * len(earlier)


def test_unknown_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "x", "--only", "anchor"]) == 2
    assert "Did you mean 'anchors'" in capsys.readouterr().err


def test_svms_read_the_features_of_fast_rcnns_own_layers() -> None:
    model = Detector.build("fast_rcnn_tiny", NAMES, device="cpu", roi_size=6, size=96, max_size=200).model
    seen = {}
    model.head.body.register_forward_hook(lambda _m, inputs, output: seen.update(fc7=output, regions=inputs[0]))
    features = model.head.fuse_features(model.backbone(torch.rand(1, 3, 96, 120)))
    boxes = torch.tensor([[[8.0, 10, 60, 80], [0, 0, 120, 96]]])
    with torch.no_grad():
        model.head(features, boxes)
        fc7, regions = seen["fc7"], seen["regions"]
        found = svms_on(model).head.vectors(features, boxes)
    assert torch.equal(found[1], fc7)
    assert torch.equal(found[0], regions.permute(0, 1, 3, 4, 2).flatten(2))


def test_svms_are_fitted_to_features_of_the_resized_image() -> None:
    model = svms_on(Detector.build("fast_rcnn_tiny", NAMES, device="cpu", size=96, max_size=200).model)
    image = torch.randint(256, (3, 48, 60), dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 5, 30, 40], [0, 0, 60, 48]])
    with torch.no_grad():
        resized = model.config.image.resizing(image)
        assert resized.shape == (3, 96, 120)
        normalised = (resized - model.normalize.pixel_mean) / model.normalize.pixel_std
        features = model.head.fuse_features(model.backbone(normalised[None]))
        for own, expected in zip(
            vectors(model, image, boxes), model.head.vectors(features, 2 * boxes[None]), strict=True
        ):
            torch.testing.assert_close(own, expected[0], atol=1e-5, rtol=1e-4)


def test_ablated_parts(scenes: Path) -> None:
    """Without regression proposals are anchors, without ranking they are drawn, without boxes they stay."""
    dataset = open_dataset(scenes, split="val")

    def fresh(**fields: object) -> Detector:
        torch.manual_seed(0)
        made = Detector.build(
            "faster_rcnn_tiny", NAMES, device="cpu", size=96, rpn_nms=1.0, rpn_top_test=50, rpn_keep_test=50, **fields
        )
        with torch.no_grad():
            for layer in (made.model.rpn.objectness, made.model.rpn.deltas, made.model.head.deltas):
                layer.weight.normal_(std=0.05)
        return made

    whole = fresh().trace(dataset.path(0)).stages
    plain = fresh()
    without_regression(plain)
    found = plain.trace(dataset.path(0)).stages
    anchors = torch.cat(found.anchors.anchors)[found.proposals.anchors[0]]
    inside = anchors.clamp(min=0).minimum(torch.tensor([96.0, 96, 96, 96]))
    torch.testing.assert_close(found.proposals.boxes[0], inside)
    assert not torch.allclose(whole.proposals.boxes[0], found.proposals.boxes[0])
    drawn = fresh()
    without_ranking(drawn, 0)
    own, random = (made.trace(dataset.path(0)).stages.proposals.anchors[0] for made in (fresh(), drawn))
    # Of several hundred anchors fifty: those drawn are spread over all, and mostly others than the best.
    assert len(set(own.tolist()) & set(random.tolist())) < 25
    assert len(set(random.tolist())) == 50
    still = without_boxes(fresh(score_threshold=0.0)).trace(dataset.path(0)).stages
    boxes, parents = still.detections.boxes[0], still.detections.proposals[0]
    torch.testing.assert_close(boxes, still.proposals.boxes[0][parents], atol=1e-4, rtol=1e-5)
