"""Whether a form that was chosen is ever slow: convolutions beside torch's own operator.

    python benchmarks/slow_paths.py [SHAPES] [SEED]

First layers of known networks, of a backbone, a pyramid and heads; then random ones of at most 6 GFLOP: channels from 3
to 1024, maps from 1 x 1 to 200 x 272, batches of 1 to 4, kernels of 1, 3 and 7, strides of 1 and 2, a summand or none.
Prints a line of JSON for every shape: its times, and `slower`, how many times as long as the plain operator the chosen
form takes. Limit the instruction set from outside: ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
MKL_ENABLE_INSTRUCTIONS=AVX2, or ONEDNN_MAX_CPU_ISA=AVX512_CORE.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twostage.ops.cpu.forms import ChosenConv
from twostage.ops.plain import PlainConv, Window

LIMIT = 1.3
CALL = 3e-5  # seconds: a call of a small layer from Python
OPERATIONS = 6e9  # of a shape at most, for the time of the whole
# Images or regions, channels in and out, height and width, kernel.
NETWORKS = (
    (1, 256, 256, 200, 272, 3),
    (1, 256, 256, 100, 136, 3),
    (1, 256, 256, 50, 68, 3),
    (1, 128, 128, 100, 136, 3),
    (1, 512, 512, 25, 34, 3),
    (1, 3, 64, 600, 800, 3),
    (4, 1024, 256, 50, 68, 1),
    (37, 256, 256, 14, 14, 3),
    (300, 256, 256, 7, 7, 3),
    (60, 1024, 512, 14, 14, 1),
)


def draw(generator: random.Random) -> dict[str, Any]:
    """A convolution and its input; sizes are uniform in their logarithm."""
    while True:
        shape = {
            "n": generator.randint(1, 4),
            "c": _between(generator, 3, 1024),
            "d": _between(generator, 3, 1024),
            "h": _between(generator, 1, 200),
            "w": _between(generator, 1, 272),
            "kernel": generator.choice([1, 1, 3, 3, 3, 7]),
            "stride": generator.choice([1, 1, 2]),
            "add": generator.random() < 0.3,
        }
        if 2 * shape["n"] * shape["c"] * shape["d"] * shape["h"] * shape["w"] * shape["kernel"] ** 2 < OPERATIONS:
            return shape


def _between(generator: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** generator.random())


@torch.inference_mode()
def compare(shape: dict[str, Any]) -> dict[str, Any]:
    """Times of the chosen form and of the plain operator, in turns; a shape that seems slow is timed again."""
    n, c, d, h, w, kernel, stride = (shape[name] for name in ("n", "c", "d", "h", "w", "kernel", "stride"))
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(d, c, kernel, kernel) / (kernel * c**0.5), torch.randn(d)
    window = Window((stride, stride), (kernel // 2, kernel // 2))
    plain, chosen = PlainConv.of(weight, bias, window), ChosenConv(weight, bias, window)
    expected = plain(x, "relu")
    add = torch.zeros_like(expected) if shape["add"] else None
    error = float((chosen(x, "relu", add) - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
    for repeats in (3, 9, 27):
        ours, theirs = _fastest(lambda: chosen(x, "relu", add), lambda: plain(x, "relu", add), repeats=repeats)
        slower = (ours - CALL) / theirs
        if slower <= LIMIT:
            break
    form = next(iter(chosen.forms.chosen.values()), "plain")
    return {**shape, "form": form, "error": error, "seconds": ours, "plain": theirs, "slower": round(slower, 3)}


def _fastest(*calls: Callable[[], Tensor], repeats: int) -> list[float]:
    times = [float("inf")] * len(calls)
    for _ in range(repeats):
        for place, call in enumerate(calls):
            start = time.thread_time()  # beside a busy program the clock says little
            call()
            times[place] = min(times[place], time.thread_time() - start)
    return times


def main() -> None:
    """Print the comparison of the known layers and of so many random ones."""
    for n, c, d, h, w, kernel in NETWORKS:
        shape = {"n": n, "c": c, "d": d, "h": h, "w": w, "kernel": kernel, "stride": 1, "add": False}
        print(json.dumps(compare(shape)), flush=True)
    count, seed = (int(value) for value in (*sys.argv[1:], *("100", "0")[len(sys.argv) - 1 :]))
    generator = random.Random(seed)
    for _ in range(count):
        print(json.dumps(compare(draw(generator))), flush=True)


if __name__ == "__main__":
    main()
