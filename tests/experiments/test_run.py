"""`twostage lineage` as a whole, on few scenes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from twostage.cli import main
from twostage.data.dataset import Dataset
from twostage.data.proposals import ProposalSet, read_proposals
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.detector import Detector
from twostage.errors import DataError
from twostage.evaluation.evaluate import evaluate
from twostage.experiments.ablate import ablate
from twostage.experiments.begin import load_or_make
from twostage.experiments.options import DETECTORS, AblateOptions, LineageOptions
from twostage.experiments.papers import RATIOS
from twostage.experiments.run import Row
from twostage.experiments.small import load_backbone, rcnn_model, save_backbone
from twostage.folders import claimed
from twostage.run_config import resumed, to_yaml

pytestmark = pytest.mark.slow


def score_of(detector: Detector, val: Dataset, given: ProposalSet) -> float:
    return evaluate(val, detector.detect_dataset(val, proposals=given)).scores.metrics["AP50"]


def arguments(scenes: Path, out: Path, *more: str) -> list[str]:
    call = ["lineage", str(scenes), "--out", str(out), "--minutes", "0.004", "--size", "64", "--windows", "20"]
    return [*call, "--learn-images", "3", "--timed", "2", "--quiet", "--json", *more]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save_backbone(path, rcnn_model(5))
    return path


@pytest.fixture
def sppnet_run(
    scenes: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A finished run of SPPnet alone from that backbone; made once, a copy for each test."""
    out = tmp_path_factory.getbasetemp() / "sppnet-run"
    if not out.exists():
        assert main(arguments(scenes, out, "--weights", str(backbone), "--only", "sppnet")) == 0
        capsys.readouterr()
    return shutil.copytree(out, tmp_path_factory.mktemp("run") / "run")


def test_every_detector_has_a_row_and_an_image(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(arguments(scenes, out)) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in result["rows"]] == list(DETECTORS)
    for row in result["rows"]:
        assert 0 <= row["metrics"]["AP50"] <= 1
        assert row["network"] > 0
        assert row["proposals"] > 0
        assert (out / row["weights"]).exists()
        assert (out / "pictures" / f"{row['key']}.jpg").exists()
    page = (out / "index.html").read_text(encoding="utf-8")
    for row in result["rows"]:
        assert page.count(f"<b>{row['name']}</b>") == 1
    assert page.count("data:image/jpeg") == len(DETECTORS)
    by_key = {row["key"]: Row(**row) for row in result["rows"]}
    assert all(ratio.ours({row["key"]: row for row in result["rows"]}) for ratio in RATIOS)

    # Fast R-CNN is scored on the proposals that R-CNN is scored on.
    val = open_dataset(scenes, split="val")
    fast = Detector.load(out / by_key["fast_rcnn"].weights)
    given = read_proposals(out / "proposals.safetensors", val)
    assert score_of(fast, val, given) == pytest.approx(by_key["fast_rcnn"].metrics["AP50"], abs=1e-6)

    # R-CNN and SPPnet are loaded from their files with the same score.
    for key in ("rcnn", "sppnet", "sppnet_5_scales"):
        detector = Detector.load(out / by_key[key].weights)
        assert detector.names == val.names
        assert score_of(detector, val, given) == pytest.approx(by_key[key].metrics["AP50"], abs=1e-6)
    weights = str(out / by_key["rcnn"].weights)
    assert main(["eval", str(scenes), "--weights", weights, "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["metrics"]["AP50"] <= 1
    assert main(["predict", str(val.path(0)), "--weights", weights, "--conf", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["path"] == str(val.path(0))

    # A resumed run trains nothing again and has the same rows.
    (out / "rows" / "sppnet.json").unlink()
    assert main(["lineage", "--resume", str(out), "--quiet", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    others = [row for row in result["rows"] if row["key"] != "sppnet"]
    assert [row for row in again["rows"] if row["key"] != "sppnet"] == others


def test_the_backbone_of_an_earlier_run_is_used(backbone: Path, sppnet_run: Path) -> None:
    result = json.loads((sppnet_run / "lineage.json").read_text(encoding="utf-8"))
    assert "read from" in result["backbone"]["detail"]
    given, kept = rcnn_model(5), rcnn_model(5)
    load_backbone(backbone, given)
    load_backbone(sppnet_run / "backbone.safetensors", kept)
    for part in ("regions", "body", "classes"):
        pairs = zip(getattr(given.head, part).parameters(), getattr(kept.head, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_backbone(tmp_path / "b.safetensors", rcnn_model(5))
    other = rcnn_model(3)
    load_backbone(tmp_path / "b.safetensors", other)  # other classes: the rest is taken
    backbone = other.head.regions.backbone
    backbone.stages = backbone.stages[:1]
    with pytest.raises(DataError, match="not the backbone of a lineage run"):
        load_backbone(tmp_path / "b.safetensors", other)


def test_a_resumed_run_keeps_its_options(sppnet_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--minutes", "9"], ["--windows", "30"], ["--seed", "4"]):
        assert main(["lineage", "--resume", str(sppnet_run), *words]) == 2
        assert "a resumed run keeps its options" in capsys.readouterr().err


def test_a_resumed_run_can_be_extended(sppnet_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sppnet_run
    kept = (out / "sppnet" / "weights.safetensors").stat().st_mtime_ns
    assert main(["lineage", "--resume", str(out), "--only", "fast_rcnn", "--quiet", "--json"]) == 0
    assert [row["key"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["sppnet", "fast_rcnn"]
    assert (out / "sppnet" / "weights.safetensors").stat().st_mtime_ns == kept
    assert main(["lineage", "--resume", str(out), "--quiet", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


def test_a_resumed_run_can_ask_for_all_detectors() -> None:
    """Named one by one in their order too."""
    for given, kept in (((), ("sppnet",)), (("fast_rcnn",), ("fast_rcnn",)), (DETECTORS, DETECTORS)):
        options = LineageOptions(resume=Path("run"), only=given)
        saved = LineageOptions(Path("data"), only=("sppnet",))
        assert resumed(options, saved, ("resume", "only"), "").only == kept


def test_ctrl_c_names_the_command_that_goes_on(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("twostage.experiments.begin.pretrain", stop)
    assert main(arguments(scenes, tmp_path / "run", "--only", "sppnet")) == 130
    assert f"Continue the comparison with: twostage lineage --resume {tmp_path / 'run'}\n" in capsys.readouterr().err


def test_a_run_that_another_process_has_keeps_its_configuration(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("twostage.folders._PATIENCE", 0)
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(LineageOptions(scenes, only=("sppnet",))))
    before = config.read_text()
    with claimed(tmp_path / "state"):
        assert main(["lineage", "--resume", str(tmp_path), "--only", "rcnn"]) == 2
    assert "another run is writing there" in capsys.readouterr().err
    assert config.read_text() == before


def test_a_run_of_other_parts_is_not_resumed(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is one that all parts were asked for by default."""
    monkeypatch.setattr("twostage.experiments.begin.pretrain", lambda *_: pytest.fail("not stopped"))
    out = tmp_path / "run"
    with pytest.raises(BaseException, match="not stopped"):
        ablate(AblateOptions(scenes, out=out, windows=20, quiet=True))
    assert main(["lineage", "--resume", str(out)]) == 3
    assert "only: 'anchors' is not known" in capsys.readouterr().err


def test_a_split_without_an_object_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AP is undefined there; nothing is trained for it."""
    data = write_scenes(tmp_path / "scenes", train=2, val=1)
    (file,) = data.rglob("*val*.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    assert main(arguments(data, tmp_path / "run")) == 2
    assert "the split 'val'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_detector_killed_before_its_first_step_begins_again(
    scenes: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(arguments(scenes, out, "--weights", str(backbone), "--only", "faster_rcnn_joint")) == 0
    (out / "rows" / "faster_rcnn_joint.json").unlink()
    (out / "faster_rcnn_joint" / "state" / "state.safetensors").unlink()
    capsys.readouterr()
    assert main(["lineage", "--resume", str(out), "--quiet", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["lineage"], 2, "no data set given"),
        (["lineage", "x", "--only", "fast-rcnn"], 2, "Did you mean 'fast_rcnn'"),
        (["lineage", "--resume", "nowhere"], 4, "no run to resume"),
        (["lineage", "nowhere"], 3, "nowhere: does not exist"),
    ],
)
def test_wrong_starts(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_extra_nothing_is_started(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    assert main(arguments(scenes, tmp_path / "run")) == 4
    assert "pip install 'twostage[lineage]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_finished_row_is_not_made_again(tmp_path: Path) -> None:
    row = {"key": "a", "metrics": {"AP": 0.5}, "train_seconds": 0.1}
    assert load_or_make(tmp_path / "a.json", lambda: row) == row
    assert load_or_make(tmp_path / "a.json", lambda: pytest.fail("made again")) == row
