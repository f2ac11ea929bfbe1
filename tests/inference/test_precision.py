"""Which precision serves: bf16 where the device is built for it and a trial is faster in it."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from twostage import Detector
from twostage.environment import cpu_flags
from twostage.errors import UsageError
from twostage.inference import precision
from twostage.inference.precision import choose_precision, slowdown

CPU = torch.device("cpu")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool, float], None]]:
    """Sets whether the device is built for bf16, and how many times as long as fp32 it takes."""

    def of(built: bool, times: float) -> None:
        monkeypatch.setattr(precision, "has_bf16", lambda device: built)
        monkeypatch.setattr(precision, "slowdown", lambda device, name: times)

    precision._warn_if_slower.cache_clear()
    yield of
    precision._warn_if_slower.cache_clear()


@pytest.mark.parametrize(
    ("built", "times", "expected"), [(True, 0.5, "bf16"), (True, 1.5, "fp32"), (False, 0.5, "fp32")]
)
def test_auto_is_bf16_where_it_is_built_in_and_faster(
    machine: Callable[[bool, float], None], built: bool, times: float, expected: str
) -> None:
    machine(built, times)
    assert choose_precision(CPU, "auto") == expected
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", precision="auto")
    assert (detector.precision, detector.dtype) == (expected, {"fp32": torch.float32, "bf16": torch.bfloat16}[expected])


def test_bf16_that_is_slower_is_used_with_one_warning(
    machine: Callable[[bool, float], None], caplog: pytest.LogCaptureFixture
) -> None:
    machine(False, 6.2)
    with caplog.at_level(logging.WARNING, logger="twostage"):
        assert [choose_precision(CPU, name) for name in ("bf16", "bf16", "fp32", "auto")] == ["bf16"] * 2 + ["fp32"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "bf16 takes 6.2 times as long as fp32 on this CPU: use fp32 or auto."
    ]


def test_bf16_that_is_faster_is_used_without_a_warning(
    machine: Callable[[bool, float], None], caplog: pytest.LogCaptureFixture
) -> None:
    machine(True, 0.4)
    assert choose_precision(CPU, "bf16") == "bf16"
    assert not caplog.records


@pytest.mark.parametrize(("name", "message"), [("bf15", "Known: auto, fp32, bf16, fp16"), ("fp16", "needs a GPU")])
def test_impossible_precisions_are_errors(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_precision(CPU, name)


def test_the_trial_is_short_made_once_and_draws_no_random_numbers() -> None:
    slowdown.cache_clear()
    state = torch.get_rng_state()
    start = time.thread_time()
    first = slowdown(CPU, "bf16")
    assert time.thread_time() - start < 1  # of a busy machine; a few hundredths on an idle one
    assert torch.equal(torch.get_rng_state(), state)
    assert first > 0
    assert slowdown(CPU, "bf16") == first
    assert slowdown.cache_info().misses == 1


@pytest.mark.slow
@pytest.mark.skipif(not {"avx512_bf16", "amx_bf16"} & set(cpu_flags()), reason="the CPU is not built for bf16")
@pytest.mark.parametrize(("limits", "expected"), [({}, "bf16"), (AVX2, "fp32")])
def test_instruction_sets_that_the_libraries_may_use_decide(limits: dict[str, str], expected: str) -> None:
    """The flags of the CPU are the same with and without the limits."""
    if set(AVX2) & set(os.environ) and not limits:
        pytest.skip("this process is limited already")
    code = (
        "import torch; from twostage.device import has_bf16;"
        "from twostage.inference.precision import choose_precision as choose; cpu = torch.device('cpu');"
        "assert has_bf16(cpu); print(choose(cpu, 'auto'), choose(cpu, 'bf16'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | limits, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected, "bf16"]
    assert ("times as long as fp32 on this CPU" in done.stderr) == (expected == "fp32")


def test_a_trial_in_which_it_looks_slower_lasts_until_that_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program takes a core in the first calls: by their times bf16 would be three times as slow."""
    calls = {torch.float32: 0, torch.bfloat16: 0}
    now = 0.0

    def convolution(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[torch.Tensor], None], torch.Tensor]:
        def conv(x: torch.Tensor) -> None:
            nonlocal now
            calls[dtype] += 1
            disturbed = dtype == torch.bfloat16 and calls[dtype] < 6
            now += 0.006 if disturbed else {torch.float32: 0.002, torch.bfloat16: 0.001}[dtype]

        return conv, torch.zeros(1)

    monkeypatch.setattr(precision, "_convolution", convolution)
    monkeypatch.setattr(precision, "cpu_clock", lambda: now)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now)
    assert slowdown.__wrapped__(CPU, "bf16") == pytest.approx(0.5)
    assert now < 0.1
