"""An export sends nothing: OpenVINO and NNCF collect usage data unless told not to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own, since NNCF is silent wherever it sees pytest.
CODE = """
import socket, sys

tried = []

def refuse(self, address, *rest):
    if self.family != getattr(socket, "AF_UNIX", None):
        tried.append(str(address))
        raise OSError("no network")
    return connect(self, address, *rest)

def refuse_name(host, *rest, **options):
    tried.append(str(host))
    raise OSError("no network")

connect = socket.socket.connect
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = refuse_name

from twostage.cli import main
from twostage.data.scenes import NAMES, write_scenes
from twostage.detector import Detector

weights, out, scenes = sys.argv[1:]
write_scenes(scenes, train=2, val=1)
fields = {"size": 64, "rpn_top_test": 50, "rpn_keep_test": 20}
Detector.build("faster_rcnn_tiny_fpn", NAMES, device="cpu", **fields).save(weights)
words = ["--precision", "int8", "--calibrate", scenes, "--calibration-images", "2", "--count", "1"]
code = main(["export", "--weights", weights, "--format", "openvino", "--out", out, "--conf", "0.01", *words])
assert code in (0, 5), code  # random weights have no AP to lose
assert "nncf" in sys.modules and "openvino" in sys.modules
import threading, time
time.sleep(1)  # for threads that send later
print("TRIED", tried, "SENDING", [each.name for each in threading.enumerate() if "elemetry" in each.name])
"""
# By these other programs know that they run in tests or in CI, and NNCF that it shall be silent.
SILENT = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "PYTEST_CURRENT_TEST")


@pytest.mark.slow
def test_an_export_reaches_for_no_network_and_leaves_nothing_at_home(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    home = tmp_path / "home"
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if name not in SILENT}
    kept = {name: value for name, value in inherited.items() if not name.startswith(("XDG_", "PYTEST"))}
    run = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "a.safetensors", tmp_path / "out", tmp_path / "scenes"],
        env={**kept, "HOME": str(home), "USERPROFILE": str(home), "TWOSTAGE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr
    assert "TRIED [] SENDING []" in run.stdout
    assert not [str(path.relative_to(home)) for path in home.rglob("*")]
    assert (tmp_path / "out" / "model.xml").exists()
