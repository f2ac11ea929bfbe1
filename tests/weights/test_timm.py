"""Weights of timm's networks from the hub's cache, and from a hub that is not reached."""

import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
from safetensors.torch import load_file

from twostage.errors import MissingError
from twostage.weights.named import find_weights


def test_what_another_program_has_fetched_is_used_without_a_network(timm_hub: dict) -> None:
    path = find_weights("timm:test_convnext", offline=True)
    state = load_file(path)
    assert (state["net.stem_0.weight"] == timm_hub["stem.0.weight"]).all()
    assert not [name for name in state if "head" in name]
    assert find_weights("timm:test_convnext.r160_in1k") == path


def test_a_hub_that_is_not_reached_is_named_with_both_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise URLError("refused")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(MissingError, match=r"is not reached \(refused\).*--weights FILE.*--weights none") as caught:
        find_weights("timm:test_resnet")
    assert caught.value.exit_code == 4
    with pytest.raises(MissingError, match="nothing is fetched offline"):
        find_weights("timm:test_resnet", offline=True)
