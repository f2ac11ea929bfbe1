"""The precision that serves on this machine: bf16 where a trial is faster in it than in fp32.

The flags of a CPU alone do not decide: the libraries may be limited to older instruction sets, and then emulate bf16.
"""

import logging
import math
import time
from functools import cache

import torch

from twostage.device import PRECISIONS, has_bf16, require_precision, synchronize
from twostage.ops.cpu import packed
from twostage.ops.cpu.choice import clock as cpu_clock
from twostage.ops.plain import Conv, PlainConv, Window

log = logging.getLogger("twostage.inference")

_CHANNELS = 128
_CPU_MAP, _MAP = (1, 32), (8, 128)  # images and pixels of a side of the trial; a GPU's must last longer than its launch
_GAIN = 0.95  # of the time in fp32: noise does not choose bf16
_LEAST, _MOST, _SECONDS = 3, 10, 0.03  # calls of the trial, and the time after which it ends in between
# Seconds of a trial in which the precision is not clearly faster: another program may have taken its core meanwhile.
_DOUBT, _CLEARLY = 0.3, 0.8


def choose_precision(device: torch.device, precision: str) -> str:
    """The precision itself; for `auto` bf16 where the device is built for it and a trial is faster, else fp32.

    Warns once per process where bf16 or fp16 is slower than fp32. Raises UsageError as `require_precision`.
    """
    if precision == "auto":
        return "bf16" if has_bf16(device) and slowdown(device, "bf16") < _GAIN else "fp32"
    if require_precision(device, precision) != torch.float32:
        _warn_if_slower(device, precision)
    return precision


@cache
def slowdown(device: torch.device, precision: str) -> float:
    """How many times as long as in fp32 a 3 x 3 convolution of the prepared model takes: by minima, called in turns."""
    clock = cpu_clock if device.type == "cpu" else time.perf_counter
    best = dict.fromkeys((torch.float32, PRECISIONS[precision]), math.inf)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        cases = {dtype: _convolution(device, dtype) for dtype in best}
        begun, turn = time.perf_counter(), 0
        while not _is_settled(turn, time.perf_counter() - begun, _ratio(best)):
            for dtype, (conv, x) in cases.items():
                synchronize(device)
                start = clock()
                conv(x)
                synchronize(device)
                if turn:  # the first is for warm-up
                    best[dtype] = min(best[dtype], clock() - start)
            turn += 1
    return _ratio(best)


def _is_settled(turns: int, seconds: float, ratio: float) -> bool:
    """Whether the trial has lasted long enough: longer where the reduced precision is not clearly faster."""
    if ratio >= _CLEARLY:
        return seconds > _DOUBT and turns > _LEAST
    return turns > _MOST or (turns > _LEAST and seconds > _SECONDS)


def _ratio(best: dict[torch.dtype, float]) -> float:
    """The time of the reduced precision, divided by that in fp32; 1 before there is one."""
    full, reduced = best.values()
    return reduced / full if full < math.inf else 1.0


def _convolution(device: torch.device, dtype: torch.dtype) -> tuple[Conv, torch.Tensor]:
    weight = torch.full((_CHANNELS, _CHANNELS, 3, 3), 0.01, dtype=dtype, device=device)
    images, side = _CPU_MAP if device.type == "cpu" else _MAP
    x = torch.full((images, _CHANNELS, side, side), 0.5, dtype=dtype, device=device)
    form = packed.PackedConv if packed.serves(device.type, dtype) else PlainConv
    return form.of(weight, None, Window(padding=(1, 1))), x.contiguous(memory_format=torch.channels_last)


@cache
def _warn_if_slower(device: torch.device, precision: str) -> None:
    times, kind = slowdown(device, precision), "CPU" if device.type == "cpu" else "device"
    if times > 1.05:  # shown with one decimal
        log.warning("%s takes %.1f times as long as fp32 on this %s: use fp32 or auto.", precision, times, kind)
