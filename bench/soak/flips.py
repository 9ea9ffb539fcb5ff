"""Bits flipped and files cut in every artifact and in the cache of activations: all is noticed, or harmless.

In the cache and in what later stages compute from, the files' times stay as they were, as they do when a disk rots: a
damaged row is computed again, a damaged artifact is refused when it is loaded. In what is only looked at (pictures,
curves, the report) the times are new: DVC, which takes a file of the same times for the same, then sees it.
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
    """All rows and what they are of."""
    found = Activations(path.parent)
    return found.digest().encode() + found.gather(np.arange(len(found))).numpy().tobytes()


def model(load: Callable[[Path], tuple[nn.Module, ModelCard]], path: Path) -> bytes:
    """All tensors and the card."""
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
    """So many damages; what came of them, in words.

    Raises:
        Failure: one was not noticed.
    """
    rng = random.Random(seed)
    project = new(folder / "flips")
    how(project)
    wanted = outs(project)
    looked_at = [name for name in wanted if name not in LOADERS and not name.startswith("data/digits/")]
    told: Counter[str] = Counter()
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
                same = kind == "artifact" and found == sound  # padding, or statistics that nobody reads
                check(noticed or same, f"round {number}: {name}, {harm}: not noticed")
            kind += ", in bytes that tell nothing" if same else ""
        told[kind] += 1
    kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(told.items()))
    return f"{rounds} bits flipped or files cut ({kinds}): all noticed, or what is read is the same"


def damaged_cache(project: Path, rng: random.Random, wanted: dict[str, str]) -> str:
    """Damage the cache for good; precompute must write the same activations all the same."""
    files = sorted(path for path in (project / ".headstart/cache/rows").rglob("*") if path.is_file())
    path = rng.choice(files)
    with damaged(path, rng, keep_times=True, restore=False) as harm:
        how(project, force=("precompute",))
        check(outs(project) == wanted, f"{path.name}, {harm}: other activations")
    return path.name


def loaded(load: Callable[[Path], object], path: Path) -> object:
    """What a loader makes of a file, None where it says that the file will not do."""
    try:
        return load(path)
    except InputError:
        return None


@contextmanager
def damaged(path: Path, rng: random.Random, *, keep_times: bool, restore: bool = True) -> Iterator[str]:
    """A file with one bit flipped or its end cut off, in the block; yields what was done to it."""
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
