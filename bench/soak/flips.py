"""Flip bits and cut files in every artifact and in the cache of activations; all damage must be noticed, or harmless.

In the cache and in files that later stages read, the times stay as they were, as on a failing disk: a damaged row is
computed again, and a damaged artifact is refused when it is loaded. In files for people (pictures, curves, the report) the
times are new, so that DVC sees the damage: it takes a file whose times did not change for unchanged.
"""

from __future__ import annotations

import functools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import nn

from bench.soak.project import check, clean, new, outs
from headstart.activations.store import Activations
from headstart.core.errors import InputError
from headstart.core.files import read_checked_json
from headstart.manifest import read_manifest
from headstart.models.trained import ModelCard, load_classifier, load_head
from tests.projects import how


def activations(path: Path) -> bytes:
    """Return all rows and the digest of what they belong to."""
    found = Activations(path.parent)
    return found.digest().encode() + found.gather(np.arange(len(found))).numpy().tobytes()


def model(load: Callable[[Path], tuple[nn.Module, ModelCard]], path: Path) -> bytes:
    """Return all tensors and the card."""
    module, card = load(path)
    return repr(card).encode() + save(module.state_dict())


LOADERS: dict[str, Callable[[Path], object]] = {
    "data/manifest.parquet": lambda path: read_manifest(path).to_json(),
    "data/activations/pooled/00000.arrow": activations,
    "reports/find_lr/lr.json": read_checked_json,
    "models/head.safetensors": functools.partial(model, load_head),
    "models/fine_tuned.safetensors": functools.partial(model, load_classifier),
}


def soak(folder: Path, rounds: int, seed: int, api: str) -> str:
    """Damage `rounds` files, one at a time, and return a summary in words.

    Raises:
        Failure: a damage was not noticed.
    """
    rng = random.Random(seed)
    project = new(folder / "flips")
    how(project)
    wanted = outs(project)
    looked_at = [name for name in wanted if name not in LOADERS and not name.startswith("data/digits/")]
    counts: Counter[str] = Counter()
    for number in range(rounds):
        kind = rng.choice(["artifact"] * 5 + ["cache"] * 4 + ["looked at"])
        if kind == "cache":
            name = damaged_cache(project, rng, wanted)
        else:
            name = rng.choice(list(LOADERS) if kind == "artifact" else looked_at)
            sound = LOADERS[name](project / name) if kind == "artifact" else None
            with damaged(project / name, rng, keep_times=kind == "artifact") as harm:
                found = loaded(LOADERS[name], project / name) if kind == "artifact" else None
                noticed = found is None if kind == "artifact" else not clean(project)
                same = kind == "artifact" and found == sound  # padding, or statistics that no reader uses
                check(noticed or same, f"round {number}: {name}, {harm}: not noticed")
            kind += ", in unused bytes" if same else ""
        counts[kind] += 1
    kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(counts.items()))
    return f"{rounds} bits flipped or files cut ({kinds}): all noticed, or what is read is the same"


def damaged_cache(project: Path, rng: random.Random, wanted: dict[str, str]) -> str:
    """Damage the cache permanently; precompute must still write the same activations."""
    files = sorted(path for path in (project / ".headstart/cache/rows").rglob("*") if path.is_file())
    path = rng.choice(files)
    with damaged(path, rng, keep_times=True, restore=False) as harm:
        how(project, force=("precompute",))
        check(outs(project) == wanted, f"{path.name}, {harm}: the activations differ")
    return path.name


def loaded(load: Callable[[Path], object], path: Path) -> object:
    """Return what a loader makes of a file, or None if it refuses the file."""
    try:
        return load(path)
    except InputError:
        return None


@contextmanager
def damaged(path: Path, rng: random.Random, *, keep_times: bool, restore: bool = True) -> Iterator[str]:
    """Flip one bit of a file or cut off its end while the block runs; yield what was done to it."""
    data, status = path.read_bytes(), path.stat()
    if rng.random() < 0.3 and data:
        harmed, harm = data[: (left := rng.randrange(len(data)))], f"cut to {left} of {len(data)} bytes"
    elif data:
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        harmed, harm = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], f"bit {bit} of byte {at} of {len(data)}"
    else:
        harmed, harm = b"x", "a byte in an empty file"
    path.write_bytes(harmed)
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        yield harm
    finally:
        if restore:
            path.write_bytes(data)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
