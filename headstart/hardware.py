"""Facts about this machine: its processors, its devices, the precision they compute in natively, the libraries installed.

What they decide is a function of the describe_processor, never of a timing. torch is imported where it is needed.
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
    """`number`, or for "auto" the processors this process may use."""
    return cores() if number == "auto" else number


def cores(system: Path = Path("/")) -> int:
    """The processors this process may use: by affinity, and by the CPU limits of its control groups, rounded up.

    Args:
        system: where the system's root is.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(system))]))


def _quotas(system: Path) -> Iterator[float]:
    """The limits, in processors, of the control groups this process is in and of those above them, of version 1 and 2.

    A container may see its group by the host's path though only its own part is mounted: what is not there is passed over.
    """
    mounted = system / "sys/fs/cgroup"
    try:
        groups = [line.split(":", 2) for line in (system / "proc/self/cgroup").read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, controllers, path in groups:
        tops = [mounted, mounted / "unified"] if not controllers else [mounted / "cpu", mounted / controllers]
        if not controllers or "cpu" in controllers.split(","):
            own = Path(path.lstrip("/"))
            for folder in {top / inner for top in tops for inner in (own, *own.parents)}:
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """The limit of one control group, if it has one: "max" and -1 are none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0 and int(period) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def pick_device(device: str) -> torch.device:
    """The device by name; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: the device asked for is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if not there[device]:
        raise InputError(f"runtime.device: {device} is not available here", fix="set runtime.device: auto")
    return torch.device(device)


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """The precision to compute in, for the engine and for training: bfloat16 where the hardware has it natively.

    Args:
        wanted: "auto", "float32" or "bfloat16"; the last two are taken as they are.

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
    """The kind of processor that computes: kernels are chosen by it, and with them the last bits."""
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
    """Versions of what pixels and numbers are computed with."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES} | {name: _version_if_any(name) for name in OPTIONAL}


def _version_if_any(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
