"""Kinds of processor to pretend to be: what hardware decides is tested on all of them, on any of them."""

from __future__ import annotations

import pytest
import torch

# (native bfloat16 by AVX512, AMX, what PyTorch calls its instruction set)
MACHINES = {
    "avx2": (False, False, "AVX2"),
    "avx512_bf16": (True, False, "AVX512"),
    "amx": (True, True, "AVX512"),
    "arm": (False, False, "DEFAULT"),
}


def pretend(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    """Have PyTorch say that this is another kind of processor."""
    bf16, amx, instructions = MACHINES[machine]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
