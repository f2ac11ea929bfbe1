"""Where a model runs, and in which arithmetic."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from twostage.environment import processor_flags
from twostage.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one, then Apple's, then the processor; else torch's own names.

    Raises UsageError for a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"The device {name!r} cannot be used: {reason}. Try 'cpu', or 'auto'.") from None
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device is built for bf16: Nvidia's since Ampere, x86 processors with AVX-512 BF16 or AMX.

    Where it is not, bf16 works and is slower than float32: on a Xeon without, 2.4 times in a training step. Processors
    are known by the list that Linux keeps.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool({"avx512_bf16", "amx_bf16"} & set(processor_flags()))
    return False


def require_precision(device: torch.device, precision: str) -> torch.dtype:
    """The dtype of a precision. Raises UsageError for an unknown one, and for fp16 on a processor."""
    if precision not in PRECISIONS:
        raise UsageError(f"There is no precision {precision!r}. Known: {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("Precision fp16 needs a GPU; a processor has bf16.")
    return PRECISIONS[precision]


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context a training step's forward pass runs in: autocast for bf16 and fp16, nothing for fp32.

    Losses, box decoding and NMS compute in float32 in every case. Raises UsageError as `require_precision`.
    """
    dtype = require_precision(device, precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@contextmanager
def reproducible(asked: bool) -> Iterator[None]:
    """Within it torch takes operations that give the same bits every time, and warns of those that have no such form.

    Those of a processor do so anyway.
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
