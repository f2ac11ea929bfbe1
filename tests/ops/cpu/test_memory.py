"""Results never share memory while both live, and their memory serves again."""

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twostage.ops.cpu import memory

LARGE = (1 << 19, 4)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_slabs", [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 5), LARGE])
def test_shape_dtype_and_alignment(shape: tuple[int, int], dtype: torch.dtype) -> None:
    out = memory.empty(shape, dtype)
    assert out.shape == shape
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert out.data_ptr() % 64 == 0 or not out.numel()


def test_living_results_do_not_share() -> None:
    first = memory.empty(LARGE, torch.float32).fill_(1)
    view = first[5:7]
    del first
    second = memory.empty(LARGE, torch.float32).fill_(2)
    assert (view == 1).all()
    assert (second == 2).all()


def test_freed_memory_serves_again_also_a_smaller_result_of_another_dtype() -> None:
    first = memory.empty(LARGE, torch.float32)
    place = first.data_ptr()
    del first
    again = memory.empty((LARGE[0] - 7, 7), torch.bfloat16)
    assert again.data_ptr() == place


def test_small_results_share_the_memory_of_a_large_one() -> None:
    large = memory.empty((4 * LARGE[0], 4), torch.float32)
    begin, end = large.data_ptr(), large.data_ptr() + large.nbytes
    del large
    small = [memory.empty(LARGE, torch.float32).fill_(number) for number in range(4)]
    assert {begin <= one.data_ptr() < end for one in small} == {True}
    assert [one.unique().tolist() for one in small] == [[0.0], [1.0], [2.0], [3.0]]
    del small[1:3]  # neighbours become one gap
    middle = memory.empty((2 * LARGE[0], 4), torch.float32)
    assert middle.data_ptr() == begin + small[0].nbytes
    assert len(memory._slabs) == 1


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 60)), max_size=40))
def test_no_two_results_ever_overlap_and_gaps_add_up(moves: list[tuple[int, int]]) -> None:
    """Taken and let go in any order: each holds what was written to it, and in the end all is one gap again."""
    memory._slabs.clear()
    held: dict[int, tuple[torch.Tensor, int]] = {}
    for turn, (place, size) in enumerate(moves):
        if place in held:
            tensor, written = held.pop(place)
            assert (tensor == written).all()
        else:
            held[place] = memory.empty((size, 1 << 17), torch.uint8).fill_(turn), turn
    assert all((tensor == written).all() for tensor, written in held.values())
    tensor = None
    held.clear()
    assert all(slab.unused for slab in memory._slabs)


def test_slabs_too_small_make_room_for_a_larger_one() -> None:
    for size in (1, 2, 3):
        memory.empty((size * LARGE[0], 4), torch.float32)
    assert [slab.memory.size for slab in memory._slabs] == [3 << 23]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_KEEP", 24 << 20)
    results = [memory.empty(LARGE, torch.float32) for _ in range(5)]  # 8 MB each
    results.clear()
    assert sum(slab.memory.size for slab in memory._slabs) <= 24 << 20


def test_threads_do_not_get_the_same_block() -> None:
    def work(number: int) -> bool:
        right = True
        for _ in range(20):
            out = memory.empty(LARGE, torch.int32).fill_(number)
            right &= bool((out == number).all())
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_nobody_waits_for_a_lock_that_a_fork_left_taken() -> None:
    with memory._busy:
        assert memory.empty(LARGE, torch.float32).shape == LARGE


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's memory of a process")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_the_c_library_keeps_what_is_freed() -> None:
    script = """
import resource, sys, torch
from pathlib import Path
from twostage.ops.cpu.memory import release_freed_memory, retain_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
if sys.argv[1] == "keep":
    retain_freed_memory()
torch.ones(1)
before = resident()
block = torch.ones(30 << 18)
del block
print(resident() - before)
release_freed_memory()
print(resident() - before)
"""
    (kept, trimmed), (left, _) = (
        map(float, subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True).stdout.split())
        for how in ("keep", "leave")
    )
    assert kept > 25  # MiB, of 30
    assert left < 5
    assert trimmed < 5
