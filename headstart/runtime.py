"""The machine: device, threads, memory, random state. `runtime` changes no result but the last bits by thread count."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import nn

from headstart.core.errors import InputError
from headstart.core.parallel import count

M = TypeVar("M", bound=nn.Module)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's mallopt(3)
KEEP_BYTES = 1 << 30


def configure(threads: int | Literal["auto"], device: str) -> torch.device:
    """Set this process up for tensor work and return the device to use.

    Raises:
        InputError: the device asked for is not there.
    """
    torch.set_num_threads(count(threads))
    keep_freed_memory()
    return pick_device(device)


def pick_device(device: str) -> torch.device:
    """The device by name; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if not there[device]:
        raise InputError(f"runtime.device: {device} is not available here", fix="set runtime.device: auto")
    return torch.device(device)


def place(module: M, device: torch.device) -> M:
    """Move a module to `device`, its convolutions in channels-last memory."""
    module.to(device)
    module.to(memory_format=torch.channels_last)
    return module


def keep_freed_memory() -> None:
    """Have glibc keep freed tensors' memory instead of returning it to the kernel after each use.

    By default every large activation is mapped, zeroed and faulted in anew: measured 1.3 to 2 times the
    time of a whole forward pass of EfficientNet-lite0 on 2 cores (docs/decisions.md).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
            libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)


@contextmanager
def scoped_seed(seed: int) -> Iterator[None]:
    """Seed torch's generators (the CPU's and the current GPU's) inside the block only; outside, they are as before."""
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def random_state() -> dict[str, torch.Tensor]:
    """The state of torch's generators, by device."""
    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | gpu


def restore_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Compute in `precision`, where that is bfloat16, and in float32 else; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def training_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """The precision to train in, and why: a function of the hardware, never of a timing."""
    if wanted != "auto":
        return wanted, "as asked for"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "this GPU has bfloat16") if native else ("float32", "this GPU has no bfloat16")
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16", "this CPU has it natively; weights in float32"
    return "float32", "no native bfloat16 here"
