"""Where a model runs, and in which arithmetic."""

from contextlib import AbstractContextManager, nullcontext

import torch

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


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context a forward pass runs in: autocast for bf16 and fp16, nothing for fp32.

    Losses, box decoding and NMS compute in float32 in every case. Raises UsageError for an unknown precision, and for
    fp16 on a processor, where few operations have it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"There is no precision {precision!r}. Known: {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("Precision fp16 needs a GPU; a processor has bf16.")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])
