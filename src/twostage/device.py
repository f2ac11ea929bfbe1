"""The device a model runs on, and its precision."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from twostage.environment import cpu_flags
from twostage.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The torch device of this name; `auto` is CUDA if available, else MPS, else the CPU.

    Raises UsageError for a device that cannot be used.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("the meta device has no data")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: its backend is not installed
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"The device {name!r} cannot be used: {reason}. Use 'cpu' or 'auto'.") from None
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions: Nvidia since Ampere, x86 CPUs with AVX-512 BF16 or AMX, Armv8.6 CPUs.

    Without them bf16 works and is slower than float32: a training step takes 2.4 times as long on a Xeon. The flags of
    a CPU are read from /proc/cpuinfo: on macOS and Windows there are none.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_flags())
    return False


def require_precision(device: torch.device, precision: str) -> torch.dtype:
    """The dtype of a precision. Raises UsageError for an unknown one, and for fp16 on a CPU."""
    if precision not in PRECISIONS:
        raise UsageError(f"Unknown precision {precision!r}. Known: auto, {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("Precision fp16 needs a GPU. Use bf16 on a CPU.")
    return PRECISIONS[precision]


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context a training step's forward pass runs in: autocast for bf16 and fp16, nothing for fp32.

    Losses, box decoding and NMS compute in float32 in every case. Raises UsageError as `require_precision`.
    """
    dtype = require_precision(device, precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def synchronize(device: torch.device) -> None:
    """Wait until all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def reproducible(asked: bool) -> Iterator[None]:
    """Use deterministic algorithms of torch inside, if asked; operations without one only warn.

    Those of the CPU are deterministic anyway.
    """
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
