"""Facts about this machine: its processors, its devices, their native precision, the installed libraries.

Decisions here depend on the kind of processor, never on a timing. Functions that need torch import it.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headstart.core.errors import InputError

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "openvino")
OPTIONAL = ("pillow-heif",)


def resolve_workers(number: int | Literal["auto"]) -> int:
    """Return `number`, or for "auto" the number of processors that this process may use."""
    return cores() if number == "auto" else number


def cores(system: Path = Path("/")) -> int:
    """Return how many processors this process may use, by affinity and by its control groups' CPU limits (rounded up).

    Args:
        system: the root of the file system.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(system))]))


def _quotas(system: Path) -> Iterator[float]:
    """Yield the limits, in processors, of this process's control groups and their parents, of version 1 and 2.

    A container may see the host's path of its group although only its own part is mounted: missing folders are skipped.
    """
    mounted = system / "sys/fs/cgroup"
    try:
        groups = [line.split(":", 2) for line in (system / "proc/self/cgroup").read_text().splitlines()]
    except OSError:  # not Linux
        return
    for _, controllers, path in groups:
        tops = [mounted, mounted / "unified"] if not controllers else [mounted / "cpu", mounted / controllers]
        if not controllers or "cpu" in controllers.split(","):
            own = Path(path.lstrip("/"))
            for folder in {top / inner for top in tops for inner in (own, *own.parents)}:
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """Yield the limit of one control group, if it has one: "max" and -1 mean no limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0 and int(period) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def pick_device(device: str) -> torch.device:
    """Return the device of a name; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: the device is not available.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, usable in available.items() if usable))
    if not available[device]:
        raise InputError(f"runtime.device: {device} is not available here", fix="set runtime.device: auto")
    return torch.device(device)


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Choose the precision of the engine and of training: bfloat16 if the hardware has it natively.

    Args:
        wanted: "auto", "float32" or "bfloat16"; the last two are returned as they are.

    Returns:
        "float32" or "bfloat16", and the reason in words.
    """
    import torch

    if wanted != "auto":
        return wanted, "as params.yaml says"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "this GPU has bfloat16") if native else ("float32", "this GPU has no bfloat16")
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return "bfloat16", "this CPU has AMX"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16", "this CPU has AVX512-BF16"
    return "float32", f"this {'CPU' if device.type == 'cpu' else 'device'} has no native bfloat16"


def describe_processor(device: str) -> str:
    """Return the kind of processor that computes: it decides the kernels, and so the last bits of results."""
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()} CUDA {torch.version.cuda} cuDNN {torch.backends.cudnn.version()}"
    amx = torch.cpu._is_amx_tile_supported()
    bf16 = torch.cpu._is_avx512_bf16_supported()
    return f"{_cpu_model()} {torch.backends.cpu.get_cpu_capability()} bf16={bf16} amx={amx}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    fields = [found.get(name, "") for name in ("model name", "cpu family", "model", "cache size")]
    return f"{platform.machine()} {' '.join(fields)}"


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute pixels and numbers."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES} | {name: _version_if_any(name) for name in OPTIONAL}


def _version_if_any(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
