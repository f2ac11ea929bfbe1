"""No chosen form is slow, without limits and limited to instruction sets of common CPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from twostage.environment import cpu_flags

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "slow_paths.py"
LIMITS = {
    "none": ((), {}),
    "AVX-512 without bf16": (("avx512f",), {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}),
    "AVX2": (
        ("avx2",),
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_no_chosen_form_is_slower_than_the_plain_operator(limit: str, tmp_path: Path) -> None:
    flags, variables = LIMITS[limit]
    if not set(flags) <= set(cpu_flags()):
        pytest.skip(f"this CPU has no {', '.join(flags)}")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "60", "7"],
        env={**os.environ, **variables, "TWOSTAGE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    shapes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(shapes) == 70
    assert not [shape for shape in shapes if shape["slower"] > 1.3]
    assert max(shape["error"] for shape in shapes) < 1e-4
