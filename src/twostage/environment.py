"""The environment of a run: versions, CPU, memory, devices. Kept in every run folder, shown by `twostage env`."""

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# The CPU's instruction sets that decide which precision and which kernels are fast.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors", "faster-coco-eval", "matplotlib", "cyclopts")


def environment() -> dict[str, Any]:
    """Versions, CPU, memory in GiB, devices, threads and extras, as JSON values. Imports torch."""
    import torch

    from twostage import __version__

    return {
        "twostage": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in _PACKAGES},
        "extras": _extras(),
        "cpu": _cpu(),
        "memory_gib": _memory(),
        "threads": {
            "torch": torch.get_num_threads(),
            "interop": torch.get_num_interop_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "devices": _devices(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, bool]:
    """Which extras of the package have all their dependencies installed."""
    try:
        requirements = metadata.requires("twostage") or []
    except metadata.PackageNotFoundError:
        return {}
    complete: dict[str, bool] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name and extra and name[0] != "twostage":
            complete[extra[1]] = complete.get(extra[1], True) and _version(name[0]) is not None
    return complete


def _cpu() -> dict[str, Any]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": cpu_name(),
        "cores": usable,
        "flags": cpu_flags(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_name() -> str:
    """The CPU's model as the system names it, or its architecture."""
    model = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The instruction sets of `_FLAGS` that /proc/cpuinfo lists; none on systems without that file."""
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    words = set(listed[1].split()) if listed else set()
    return [flag for flag in _FLAGS if flag in words]


def _cpuinfo() -> str:
    listing = Path("/proc/cpuinfo")
    return listing.read_text(encoding="utf-8", errors="replace") if listing.exists() else ""


def _memory() -> float | None:
    """Memory of the machine in GiB; None if the system does not report it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _devices() -> list[dict[str, Any]]:
    """The accelerators that torch finds."""
    import torch

    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "capability": f"{properties.major}.{properties.minor}",
                "toolkit": torch.version.cuda or torch.version.hip,
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": platform.processor()})
    return devices
