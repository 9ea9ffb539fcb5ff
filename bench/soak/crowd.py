"""Run several precomputes on one cache at once; each row must be computed once, and all activations must be equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.soak.project import check, copy, environment, new, outs
from headstart.core.files import remove
from tests.projects import how

CLONES = 3


def soak(folder: Path, rounds: int, seed: int, api: str) -> str:
    """Run `rounds` rounds of three clones that begin at once, and return a summary in words.

    Raises:
        Failure: a clone failed, a row was computed twice or not at all, or outs differ.
    """
    cache = folder / "cache"
    first = new(folder / "first", **{"runtime.cache_dir": str(cache)})
    how(first)
    wanted = outs(first)
    clones = [copy(first, folder / f"clone{number}") for number in range(CLONES)]
    rows = 0
    for number in range(rounds):
        remove(cache)
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "tasks.precompute"], cwd=clone, env=environment(), stderr=subprocess.PIPE, text=True
            )
            for clone in clones
        ]
        errors = [process.communicate()[1] for process in running]
        check(all(process.returncode == 0 for process in running), f"round {number}: one failed:\n{errors}")
        summaries = [json.loads((clone / ".headstart/records/precompute.json").read_text())["summary"] for clone in clones]
        rows = summaries[0]["rows"]
        computed = [one["rows"] - one["cached_rows"] for one in summaries]
        check(sum(computed) == rows, f"round {number}: {computed} rows were computed, of {rows}")
        check(all(outs(clone) == wanted for clone in clones), f"round {number}: the activations differ")
    return f"{rounds} rounds of {CLONES} at once on one cache: each of {rows} rows computed once per round, nothing corrupt"
