"""Results never share memory while both live, and their memory serves again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from twostage.ops import _memory

LARGE = (1 << 19, 4)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_free", [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 5), LARGE])
def test_shape_dtype_and_alignment(shape: tuple[int, int], dtype: torch.dtype) -> None:
    out = _memory.empty(shape, dtype)
    assert out.shape == shape
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert out.data_ptr() % 64 == 0 or not out.numel()


def test_living_results_do_not_share() -> None:
    first = _memory.empty(LARGE, torch.float32).fill_(1)
    view = first[5:7]
    del first
    second = _memory.empty(LARGE, torch.float32).fill_(2)
    assert (view == 1).all()
    assert (second == 2).all()


def test_freed_memory_serves_again_also_a_smaller_result_of_another_dtype() -> None:
    first = _memory.empty(LARGE, torch.float32)
    place = first.data_ptr()
    del first
    again = _memory.empty((LARGE[0] - 7, 7), torch.bfloat16)
    assert again.data_ptr() == place


def test_memory_twice_too_large_is_not_taken() -> None:
    large = _memory.empty((3 * LARGE[0], 4), torch.float32)
    del large
    small = _memory.empty(LARGE, torch.float32)
    del small
    assert [block.nbytes // (1 << 23) for block in _memory._free] == [1]  # a block of its own, 8 MB


def test_what_is_kept_is_bounded_and_follows_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_KEEP", 24 << 20)
    results = [_memory.empty(LARGE, torch.float32) for _ in range(5)]  # 8 MB each
    results.clear()
    assert sum(block.nbytes for block in _memory._free) <= 24 << 20
    larger = [_memory.empty((5 << 19, 4), torch.float32) for _ in range(3)]
    assert not _memory._free  # each of them found nothing that fits, and one old block went
    del larger


def test_threads_do_not_get_the_same_block() -> None:
    def work(number: int) -> bool:
        right = True
        for _ in range(20):
            out = _memory.empty(LARGE, torch.int32).fill_(number)
            right &= bool((out == number).all())
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_nobody_waits_for_a_lock_that_a_fork_left_taken() -> None:
    with _memory._taking:
        assert _memory.empty(LARGE, torch.float32).shape == LARGE
