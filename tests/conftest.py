"""What every test stands on: few threads, fixed seeds, no network, and real data where the machine has it."""

import os
import random
import socket
from pathlib import Path
from typing import Any

# Before torch is imported: small tensors gain nothing from more threads, and a shared machine loses much. A worker of
# pytest-xdist has one; it inherits the environment of the process that started it, which has two.
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else os.environ.get("OMP_NUM_THREADS", "2")
# Threads that spin while they wait slow everything down as soon as another process wants a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest_plugins = ["loopback"]

hypothesis.settings.register_profile("twostage", deadline=None, derandomize=True)
hypothesis.settings.load_profile("twostage")
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    """Every test begins from the same random state, in whatever order they run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache; subprocesses inherit this one."""
    os.environ["TWOSTAGE_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test, and so no verb, may reach for the network. Sockets between processes of one machine stay open.

    A test with the fixture `server` may reach that one.
    """
    connect, look_up = socket.socket.connect, socket.getaddrinfo
    here = ("127.0.0.1",) if "server" in request.fixturenames else ()

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in here:
            raise AssertionError(f"tried to reach {address} over the network")
        connect(self, address)

    def refuse_name(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in here:
            return look_up(host, *args, **kwargs)
        raise AssertionError(f"tried to look up {host} on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)


def _folder(name: str) -> Path:
    root = os.environ.get("TWOSTAGE_DATA")
    if not root:
        pytest.skip("TWOSTAGE_DATA is not set: no real data on this machine")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"TWOSTAGE_DATA has no folder {name}")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets: blood-cells (VOC), coco-photos (COCO), nuclei (COCO with masks)."""
    return _folder("data")


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder of results and the numbers other tools gave for them."""
    return _folder("oracles")


@pytest.fixture
def timm_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Random weights of a whole network of timm, as another program left them in the hub's cache."""
    import huggingface_hub
    import timm

    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    network = timm.create_model("test_convnext")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    repository = tmp_path / "hub" / "models--timm--test_convnext.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(network.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    return network.state_dict()
