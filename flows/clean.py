"""`make clean`: list and delete what the stages wrote, and .headstart. The user's own files stay."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from headstart.core.command_line import command_line, guarded
from headstart.core.files import remove
from headstart.core.graph import load_graph
from headstart.core.params import Params, load_params
from headstart.core.text import printable
from headstart.datasets.builtin import NAMES, foreign, is_dvcs_link
from headstart.versioning import workspace

from flows import PROJECT

SHOWN = 12


@dataclass(frozen=True)
class Plan:
    """Paths to delete, and paths to keep with the reason (empty if no stage writes there), relative to the project."""

    delete: Sequence[str]
    keep: Sequence[tuple[str, str]]


def plan(root: Path, params: Params) -> Plan:
    """Plan to delete the outs of dvc.yaml, each built-in set whose folder holds nothing else, and .headstart.

    A link belongs to the user, unless it leads into DVC's cache.
    """
    outs = [out for stage in load_graph(root, params).values() if stage.name != "fetch_data" for out in stage.outs]
    delete: list[str] = []
    keep: list[tuple[str, str]] = []
    for path in [*outs, *(f"data/{name}" for name in NAMES), ".headstart"]:
        if os.path.lexists(root / path):
            reason = why_kept(root, path)
            if reason:
                keep.append((path, reason))
            else:
                delete.append(path)
    listed = {*delete, *(path for path, _ in keep)}
    keep += [(path, "") for path in _beside(root) if path not in listed]
    return Plan(delete, keep)


def why_kept(root: Path, path: str) -> str:
    """Return why the path of an out is kept: it is not what the stage wrote. Return an empty text if it is."""
    target = root / path
    if target.is_symlink():
        return "" if is_dvcs_link(target) else f"a link, to {os.readlink(target)}"
    if target.parent != root / "data" or target.name not in NAMES:
        return ""
    if target.with_name(f"{target.name}.dvc").exists():
        return "a copy in DVC's care"
    own = foreign(target, target.name)
    return f"holds files that fetch_data did not write: {', '.join(own[:3])}{', …' if len(own) > 3 else ''}" if own else ""


def _beside(root: Path) -> Iterator[str]:
    for top in ("data", "models", "reports"):
        if (root / top).is_dir():
            yield from (f"{top}/{name}" for name in sorted(os.listdir(root / top)))


def listing(found: Plan, dry_run: bool) -> str:
    """Return what is deleted and what is kept, as text of at most one screen."""
    lines = [("would delete:" if dry_run else "deleting:") if found.delete else "nothing to delete"]
    lines += [f"  {printable(path)}" for path in found.delete]
    lines += [f"kept: {printable(path)}: {printable(reason)}" for path, reason in found.keep if reason]
    others = [printable(path) for path, reason in found.keep if not reason]
    if others:
        more = f", … and {len(others) - SHOWN:,} more" if len(others) > SHOWN else ""
        lines.append(f"kept, since no stage wrote them: {', '.join(others[:SHOWN])}{more}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.clean", description="Delete what the stages wrote, and .headstart.")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be deleted")
    dry_run = parser.parse_args(arguments).dry_run
    params = load_params(PROJECT / "params.yaml")
    with nullcontext() if dry_run else workspace(PROJECT):  # no other run meanwhile
        found = plan(PROJECT, params)
        print(listing(found, dry_run), flush=True)  # noqa: T201
        for path in () if dry_run else found.delete:
            remove(PROJECT / path)
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
