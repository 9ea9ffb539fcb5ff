"""Checkpoints: a training's state on disk, one checksummed safetensors file, written atomically, without pickle.

Checkpoints live outside every DVC output, in `.headstart/checkpoints/STAGE/DIGEST/`. DIGEST covers everything that decides
the training's result: its inputs, parameters, code and libraries, and the machine (threads, device).
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from headstart.core.files import atomic_path, canonical_json, no_space, remove, sha256_bytes, write_json
from headstart.hardware import describe_processor, library_versions
from headstart.models.weights import unshared

logger = logging.getLogger("headstart")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Saved:
    """The whole state of a training.

    Args:
        model, best: state dicts, the current one and the best epoch's; `best` is empty if it is the current one.
        optimizer: the optimizer's tensors, named `PARAMETER.NAME`.
        random: the generators' states; empty at an epoch's end, because every epoch seeds its own.
        progress: the plain values of `History`.
    """

    model: Tensors
    best: Tensors
    optimizer: Tensors
    random: Tensors
    progress: dict[str, Any]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the tensors that an optimizer has accumulated, as a flat dict."""
    states = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, state in states.items() for name, value in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore what `optimizer_tensors` returned into an optimizer of the same groups, in its parameters' memory layout.

    A fused AdamW computes different bits if its state's strides differ from its parameters'.
    """
    state: dict[int, Tensors] = {}
    for name, value in tensors.items():
        i, _, key = name.partition(".")
        state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for parameter, own in optimizer.state.items():
        for key, value in own.items():
            if value.shape == parameter.shape:
                own[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def checksum(tensors: Tensors) -> str:
    """Return a checksum of names, types, shapes and values: 32 hex digits. It detects accidental damage, not tampering."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Checkpoint:
    """The files of one training on disk.

    Args:
        folder: the folder named by the digest.
        name: the training's name, as a stage may have several.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.safetensors"
        self.run_path = folder / f"{name}.run.json"  # the id of the tracked run to resume
        self.found_path = folder / f"{name}.json"

    def remember(self, compute: Callable[[], list[Any]]) -> list[Any]:
        """Return the list of plain values from `compute`, which runs once; after an interruption it is read from disk."""
        try:
            found: list[Any] = json.loads(self.found_path.read_text())["found"]
        except (OSError, ValueError, KeyError):
            found = compute()
            write_json(self.found_path, {"found": found})
        return found

    def save(self, saved: Saved) -> None:
        """Write the state atomically: the file holds the old state or the new one, never a mix.

        Raises:
            InputError: the disk is full.
        """
        parts = {"model": saved.model, "best": saved.best, "optimizer": saved.optimizer, "random": saved.random}
        flat = unshared({f"{part}/{name}": value for part, own in parts.items() for name, value in own.items()})
        about = {"progress": saved.progress, "xxh128": checksum(flat)}
        metadata = {"headstart": json.dumps(about, allow_nan=False)}  # keys keep their order: it is that of history.csv
        try:
            with atomic_path(self.path) as temporary:
                save_file(flat, temporary, metadata)
        except SafetensorError as error:
            if os.strerror(errno.ENOSPC) in str(error):  # the error has no errno
                raise no_space(self.path, sum(value.nbytes for value in flat.values())) from None
            raise

    def load(self) -> Saved | None:
        """Return the last state, or None if there is none; warn about a damaged one and ignore it."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = json.loads(file.metadata()["headstart"])
                flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("  %s is damaged (%s): training starts from the beginning", self.path, str(error)[:120])
            return None
        if metadata.get("xxh128") != checksum(flat):
            logger.warning("  %s is damaged (checksum): training starts from the beginning", self.path)
            return None
        parts: dict[str, Tensors] = {"model": {}, "best": {}, "optimizer": {}, "random": {}}
        for name, value in flat.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        return Saved(**parts, progress=metadata["progress"])


def open_checkpoint(stage: Path, identity: Mapping[str, Any], name: str, device: str = "cpu") -> Checkpoint:
    """Return a training's checkpoint, named by a digest of everything that decides its result; delete those of other digests.

    The digest covers `identity`, the libraries, the kind of processor and the number of threads.

    Args:
        stage: the stage's folder of checkpoints.
        identity: digests of the inputs and the code, and the parameters.
        device: the kind of device that trains.
    """
    machine = {"threads": torch.get_num_threads(), "hardware": describe_processor(device), "libraries": library_versions()}
    digest = sha256_bytes(canonical_json({**identity, "machine": machine}).encode())[:32]
    for other in stage.glob("*"):
        if other.name != digest:
            remove(other)
    return Checkpoint(stage / digest, name)
