"""All randomness: seeds and generators keyed on their purpose, never on the order of calls.

Functions that need torch import it, so that the scan, which needs only hashes, starts without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *parts: str | int) -> int:
    """Return a seed (56 bits) for one purpose: equal arguments give equal seeds, different ones unrelated seeds."""
    return int.from_bytes(_hash(seed, *parts)[:7])


def view_generator(seed: int, *parts: str | int) -> np.random.Generator:
    """Return a numpy generator keyed on its arguments alone, such as (seed, "view", image key, view number)."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(_hash(seed, *parts)[:16])))


def share_and_fold(seed: int, key: str, folds: int) -> tuple[float, int]:
    """Return a number in [0, 1) that decides the split of an image or a group, and one of k folds by other bits of the hash.

    Both depend only on the seed and the image's bytes (or the group's name), so they never change.
    """
    digest = hashlib.sha256(f"split\0{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64, int.from_bytes(digest[8:16]) % folds


def _hash(seed: int, *parts: str | int) -> bytes:
    return hashlib.sha256("\0".join(str(part) for part in (seed, *parts)).encode()).digest()


@contextmanager
def scoped_seed(seed: int) -> Iterator[None]:
    """Seed torch's generators (the CPU's and the current GPU's) inside the block, and restore them after it."""
    import torch

    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def random_state() -> dict[str, torch.Tensor]:
    """Return the state of torch's generators, by device."""
    import torch

    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | gpu


def restore_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Restore a state that `random_state` returned."""
    import torch

    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
