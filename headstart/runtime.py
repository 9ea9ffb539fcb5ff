"""Set a process up for tensor work: threads, memory, device. It changes at most the last bits of a result."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal, TypeVar

import torch
from torch import nn

from headstart.hardware import pick_device, resolve_workers

M = TypeVar("M", bound=nn.Module)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's mallopt(3)
KEEP_BYTES = 1 << 30


def configure(threads: int | Literal["auto"], device: str) -> torch.device:
    """Set this process up for tensor work and return the device to use.

    Raises:
        InputError: the device is not available.
    """
    torch.set_num_threads(resolve_workers(threads))
    keep_freed_memory()
    return pick_device(device)


def to_device(module: M, device: torch.device) -> M:
    """Move a module to `device`, with its convolutions in channels-last memory."""
    module.to(device)
    module.to(memory_format=torch.channels_last)
    return module


def keep_freed_memory() -> None:
    """Have glibc keep freed tensors' memory instead of returning it to the kernel after each use.

    By default the kernel maps and zeroes the memory of every large activation again, which costs 1.3 to 2 times
    the time of a forward pass of EfficientNet-lite0 on 2 cores (docs/decisions.md).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
            libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Compute in bfloat16 if that is `precision`, otherwise in float32. Weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
