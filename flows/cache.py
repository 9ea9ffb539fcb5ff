"""`python -m flows.cache {stat,verify,prune}`: look at the cache of activations, check it, free its space."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from headstart.activations.cache import ENTRY, Cache, open_root, params_digest, row_bytes, split_blocks, split_row_key
from headstart.core.command_line import guarded
from headstart.core.errors import InputError
from headstart.core.files import remove
from headstart.core.params import load_params
from rich.console import Console
from rich.table import Table

from flows.arguments import number


@dataclass(frozen=True)
class Namespace:
    """A namespace on disk.

    Args:
        description: what its rows depend on; empty where it cannot be read.
        rows: entries, superseded ones included.
        size: bytes on the disk.
        used: when it was last opened, seconds since 1970.
        projects: those whose current parameters use it.
    """

    folder: Path
    description: dict[str, Any]
    rows: int
    size: int
    used: float
    projects: tuple[str, ...]


def namespaces(root: Path) -> list[Namespace]:
    """Return all namespaces of a cache, the most recently used first."""
    users = current_users(root)
    found = []
    for folder in (root / "rows").glob("[!.]*"):
        try:
            description = json.loads((folder / "namespace.json").read_bytes())
        except (OSError, ValueError):
            description = {}
        files = [path.stat().st_size for path in folder.iterdir()]
        entries = folder / "index.bin"
        rows = entries.stat().st_size // ENTRY.itemsize if entries.exists() else 0
        found.append(
            Namespace(folder, description, rows, sum(files), folder.stat().st_mtime, tuple(sorted(users.get(folder.name, ()))))
        )
    return sorted(found, key=lambda one: -one.used)


def current_users(root: Path) -> dict[str, list[str]]:
    """Return projects by namespace: those whose params.yaml still is as it was when they used the namespace."""
    users: dict[str, list[str]] = {}
    for path in (root / "users").glob("*.json"):
        try:
            record = json.loads(path.read_bytes())
            params = load_params(Path(record["project"]) / "params.yaml")
        except (OSError, ValueError):  # the project is gone, or its params.yaml is not what it was
            continue
        if params_digest(params) == record["params"]:
            for name in record["namespaces"].values():
                users.setdefault(name, []).append(record["project"])
    return users


def stat(root: Path, console: Console) -> int:
    """Show namespaces, rows, bytes."""
    table = Table(title=str(root), title_justify="left")
    for heading in ("namespace", "backbone", "cut", "px", "computed in", "rows", "MB", "last used", "used by"):
        table.add_column(heading, justify="right" if heading in ("px", "rows", "MB") else "left")
    every = namespaces(root)
    for one in every:
        about = one.description
        table.add_row(
            one.folder.name[:12],
            str(about.get("backbone", "?")),
            str(about.get("cut", "?")),
            str(about.get("preprocessing", {}).get("image_size", "?")),
            f"{about.get('precision', '?')}, {about.get('engine', '?')}",
            f"{one.rows:,}",
            f"{one.size / 1e6:,.1f}",
            datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M"),
            ", ".join(one.projects) or "nothing now",
        )
    console.print(table)
    total = sum(one.size for one in every)
    console.print(f"{len(every)} namespaces, {sum(one.rows for one in every):,} rows, {total:,} bytes")
    return 0


def verify(root: Path, console: Console) -> int:
    """Read every row. Return 1 if any is damaged; a damaged row is computed again when it is needed."""
    bad = 0
    for one in namespaces(root):
        about = one.description
        if not about:
            console.print(f"{one.folder}: namespace.json is damaged; delete this folder")
            bad += 1
            continue
        cache = Cache(one.folder, root / "locks" / f"{one.folder.name}.lock", row_bytes(about["shape"], about["storage"]))
        damaged = damaged_rows(cache)
        for key, view in damaged[:10]:
            console.print(f"{one.folder.name[:12]}: the row of image {key}, view {view} is damaged")
        console.print(f"{one.folder.name[:12]}: {len(cache):,} rows, {len(damaged):,} damaged")
        bad += len(damaged)
    return int(bad > 0)


def damaged_rows(cache: Cache) -> list[tuple[str, int]]:
    """Return the key and view of the damaged rows that have not been replaced."""
    current = np.unique(cache.find(cache.entries["row_key"]))
    bad: list[tuple[str, int]] = []
    for rows in split_blocks(current, cache.row_bytes):
        _, sound = cache.read(rows)
        bad += [split_row_key(row_key) for row_key in cache.entries["row_key"][rows[~sound]].tolist()]
    return bad


def prune(root: Path, console: Console, max_gb: float | None) -> int:
    """Delete namespaces that no project's current parameters use, the least recently used first; all, or down to a size."""
    for unfinished in (root / "rows").glob(".*"):
        shutil.rmtree(unfinished, ignore_errors=True)  # a deletion that was cut off
    every = namespaces(root)
    total = sum(one.size for one in every)
    for one in reversed(every):
        if one.projects or (max_gb is not None and total <= max_gb * 1e9):
            continue
        if drop(root, one.folder):
            total -= one.size
            console.print(f"dropped {one.folder.name[:12]}: {one.rows:,} rows, {one.size:,} bytes")
        else:
            console.print(f"kept {one.folder.name[:12]}: a process is writing into it")
    console.print(f"{total:,} bytes are left")
    if max_gb is not None and total > max_gb * 1e9:
        console.print(f"more than {max_gb:g} GB: current parameters use the rest")
    return 0


def drop(root: Path, folder: Path) -> bool:
    """Delete a namespace unless somebody is writing into it."""
    with (root / "locks" / f"{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        aside = root / "rows" / f".{folder.name}.{os.getpid()}"
        os.rename(folder, aside)  # from here on it is not there, even if the deletion is cut off
        remove(aside)
    return True


def cache_root(project: Path, folder: str | None) -> Path:
    """Return the cache that `folder` or the project's params.yaml names.

    Raises:
        InputError: there is none.
    """
    named = folder or load_params(project / "params.yaml").runtime.cache_dir
    root = project / os.path.expanduser(named)
    if not os.path.isdir(root):
        raise InputError(f"{root}: no cache of activations there yet", fix="run the pipeline, or give --cache-dir")
    return open_root(root)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.cache", description="Look at the cache of activations, check it, free its space."
    )
    parser.add_argument("--cache-dir", help="the cache (default: params.yaml's runtime.cache_dir)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("stat", help="show namespaces, rows, bytes")
    commands.add_parser("verify", help="read and check every row")
    pruning = commands.add_parser("prune", help="drop what no project's current params.yaml uses")
    pruning.add_argument("--max-gb", type=number(0), help="only until the cache is this small, least recently used first")
    given = parser.parse_args(arguments)
    root = cache_root(Path.cwd(), given.cache_dir)
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)
    if given.command == "prune":
        return prune(root, console, given.max_gb)
    return {"stat": stat, "verify": verify}[given.command](root, console)


if __name__ == "__main__":
    sys.exit(guarded(main))
