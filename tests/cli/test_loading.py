"""Garbage collection while a detector is loaded."""

import gc
from collections.abc import Iterator

import pytest

from twostage.cli.loading import collecting_later


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    yield
    gc.enable()


def fail_within() -> None:
    with collecting_later():
        assert not gc.isenabled()
        raise ImportError


@pytest.mark.parametrize("before", [True, False])
def test_garbage_collection_is_as_before_even_after_an_error(before: bool) -> None:
    (gc.enable if before else gc.disable)()
    with pytest.raises(ImportError):
        fail_within()
    assert gc.isenabled() is before
