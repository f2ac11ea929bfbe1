"""Every x86 fast path switched off, as on Arm without oneDNN: the same detections, and forms are chosen there too."""

from pathlib import Path

import numpy as np
import pytest
import torch

from twostage import Detector
from twostage.models.fused import FusedConv, FusedLinear
from twostage.ops.cpu import choice, forms, packed, threads
from twostage.ops.cpu.forms import ChosenConv, ChosenLinear

PLAIN = {"plain", "plain product", "Winograd"}


@pytest.fixture
def other_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """oneDNN's operators are absent, and the system has neither /proc/stat nor /proc/cpuinfo."""
    monkeypatch.setattr(packed, "serves", lambda device, dtype: False)
    monkeypatch.setattr(threads, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(threads, "_known", {})
    monkeypatch.setattr("twostage.environment._cpuinfo", lambda: "")
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))
    monkeypatch.setattr(forms, "_SMALL", 1e4)
    choice._choices.cache_clear()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("model", ["faster_rcnn_tiny_fpn", "mask_rcnn_tiny_fpn", "retinanet_tiny_fpn"])
def test_detections_are_the_same_without_any_x86_fast_path(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(0)
    detector = Detector.build(model, ["a", "b"], device="cpu", score_threshold=0.0)
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    expected = detector.trace(image).stages
    request.getfixturevalue("other_cpu")
    with torch.backends.mkldnn.flags(enabled=False):
        other = Detector(detector.model, model, ["a", "b"], device="cpu", precision="auto")
        assert other.precision == "fp32"
        stages = other.trace(image).stages
    for a, b in zip(stages.maps, expected.maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    layers = [m for m in other.prepared.model.modules() if isinstance(m, FusedConv | FusedLinear)]
    chosen = [layer.conv if isinstance(layer, FusedConv) else layer.linear for layer in layers]
    assert all(isinstance(one, ChosenConv | ChosenLinear) for one in chosen)
    tried = set().union(*(one.forms.chosen.values() for one in chosen))
    assert tried
    assert tried <= PLAIN
    assert list((tmp_path / "forms").glob("*.json"))
