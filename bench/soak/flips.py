"""Bits flipped and files cut in every artifact and in the cache of activations: all is noticed.

In the cache and in what later stages compute from, the files' times stay as they were, as they do when a disk rots: a
damaged row is computed again, a damaged artifact is refused when it is loaded. In what is only looked at (pictures,
curves, the report) the times are new: DVC, which takes a file of the same times for the same, then sees it.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.soak.project import check, clean, new, outs
from headstart.activations.store import Activations
from headstart.core.errors import InputError
from headstart.core.files import read_checked_json
from headstart.data.manifest import read_manifest
from headstart.models.trained import load_classifier, load_head
from tests.projects import how


def whole_activations(path: Path) -> None:
    """Read every row of assembled activations.

    Raises:
        InputError: one is damaged.
    """
    activations = Activations(path.parent)
    activations.gather(__import__("numpy").arange(len(activations)))


LOADERS: dict[str, Callable[[Path], object]] = {
    "data/manifest.parquet": read_manifest,
    "data/activations/pooled/00000.arrow": whole_activations,
    "reports/find_lr/lr.json": read_checked_json,
    "models/head.safetensors": load_head,
    "models/fine_tuned.safetensors": load_classifier,
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
            with damaged(project / name, rng, keep_times=kind == "artifact") as harm:
                noticed = refused(LOADERS[name], project / name) if kind == "artifact" else not clean(project)
                check(noticed, f"round {number}: {name}, {harm}: not noticed")
        told[kind] += 1
    kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(told.items()))
    return f"{rounds} bits flipped or files cut ({kinds}): all noticed"


def damaged_cache(project: Path, rng: random.Random, wanted: dict[str, str]) -> str:
    """Damage the cache for good; precompute must write the same activations all the same."""
    files = sorted(path for path in (project / ".headstart/cache/rows").rglob("*") if path.is_file())
    path = rng.choice(files)
    with damaged(path, rng, keep_times=True, restore=False) as harm:
        how(project, force=("precompute",))
        check(outs(project) == wanted, f"{path.name}, {harm}: other activations")
    return path.name


def refused(load: Callable[[Path], object], path: Path) -> bool:
    """Whether a loader says that a file will not do."""
    try:
        load(path)
    except InputError:
        return True
    return False


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
