"""`python -m flows.cache {stat,verify,prune}`: show the cache of activations, check it, or free its disk space."""

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
    """A namespace of the cache: the rows of one backbone, cut, preprocessing and precision.

    Args:
        folder: where it is.
        description: what its rows depend on; empty if it cannot be read.
        rows: number of entries, including superseded ones.
        size: bytes on the disk.
        used: when it was last opened, in seconds since 1970.
        projects: the projects whose current parameters use it.
    """

    folder: Path
    description: dict[str, Any]
    rows: int
    size: int
    used: float
    projects: tuple[str, ...]


def namespaces(root: Path) -> list[Namespace]:
    """Return all namespaces of a cache, most recently used first."""
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
    """Return, by namespace, the projects whose params.yaml has not changed since they used it."""
    users: dict[str, list[str]] = {}
    for path in (root / "users").glob("*.json"):
        try:
            record = json.loads(path.read_bytes())
            params = load_params(Path(record["project"]) / "params.yaml")
        except (OSError, ValueError):  # the project is gone, or its params.yaml is no longer valid
            continue
        if params_digest(params) == record["params"]:
            for name in record["namespaces"].values():
                users.setdefault(name, []).append(record["project"])
    return users


def stat(root: Path, console: Console) -> int:
    """Show the namespaces with their rows and bytes."""
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
            ", ".join(one.projects) or "no project",
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
    """Delete namespaces that no project uses now, least recently used first: all, or until the cache is small enough."""
    for unfinished in (root / "rows").glob(".*"):
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a deletion that was interrupted
    every = namespaces(root)
    total = sum(one.size for one in every)
    for one in reversed(every):
        if one.projects or (max_gb is not None and total <= max_gb * 1e9):
            continue
        if drop(root, one.folder):
            total -= one.size
            console.print(f"deleted {one.folder.name[:12]}: {one.rows:,} rows, {one.size:,} bytes")
        else:
            console.print(f"kept {one.folder.name[:12]}: a process is writing into it")
    console.print(f"{total:,} bytes are left")
    if max_gb is not None and total > max_gb * 1e9:
        console.print(f"this is still more than {max_gb:g} GB: projects' current parameters use the rest")
    return 0


def drop(root: Path, folder: Path) -> bool:
    """Delete a namespace, unless a process is writing into it. Return whether it was deleted."""
    with (root / "locks" / f"{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        aside = root / "rows" / f".{folder.name}.{os.getpid()}"
        os.rename(folder, aside)  # from here on it is gone, even if the deletion is interrupted
        remove(aside)
    return True


def cache_root(project: Path, folder: str | None) -> Path:
    """Return the cache that `folder` or the project's params.yaml names.

    Raises:
        InputError: the folder does not exist.
    """
    named = folder or load_params(project / "params.yaml").runtime.cache_dir
    root = project / os.path.expanduser(named)
    if not os.path.isdir(root):
        raise InputError(f"{root}: no cache of activations there yet", fix="run the pipeline, or give --cache-dir")
    return open_root(root)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.cache", description="Show the cache of activations, check it, or free its disk space."
    )
    parser.add_argument("--cache-dir", help="folder of the cache (default: runtime.cache_dir in params.yaml)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("stat", help="show the namespaces with their rows and bytes")
    commands.add_parser("verify", help="read and check every row")
    pruning = commands.add_parser("prune", help="delete what no project's current params.yaml uses")
    pruning.add_argument("--max-gb", type=number(0), help="stop once the cache is this small; least recently used first")
    given = parser.parse_args(arguments)
    root = cache_root(Path.cwd(), given.cache_dir)
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)
    if given.command == "prune":
        return prune(root, console, given.max_gb)
    return {"stat": stat, "verify": verify}[given.command](root, console)


if __name__ == "__main__":
    sys.exit(guarded(main))
