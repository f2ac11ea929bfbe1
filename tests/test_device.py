"""Where a model runs, and in which arithmetic."""

import pytest
import torch

from twostage import device
from twostage.device import choose_device, has_bf16
from twostage.errors import UsageError


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], False), (["avx2", "avx512f"], False), (["avx512f", "avx512_bf16"], True), (["amx_bf16"], True)],
)
def test_bf16_is_of_the_processor_where_its_flags_say_so(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: bool
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    assert has_bf16(torch.device("cpu")) == (expected and torch.backends.mkldnn.is_available())


def test_bf16_is_not_of_a_device_that_says_nothing_of_it() -> None:
    assert not has_bf16(torch.device("mps"))


@pytest.mark.parametrize("name", ["hpu", "privateuseone", "xpu", "meta", "gpu", ""])
def test_a_device_that_cannot_be_used_is_refused(name: str) -> None:
    """Backends that are separate packages, those that torch was built without, those that do not exist."""
    with pytest.raises(UsageError, match=f"The device '{name}' cannot be used"):
        choose_device(name)
