"""Measure how long fitting and encoding a table takes: `python -m bench.columns`.

The table has 10 continuous columns, 8 categorical ones of up to 1,000 values and 2 of dates; a tenth of the cells of three
columns is missing. It is measured typed, as from Parquet, and as text, as from CSV, at two sizes, which shows whether the
time grows in proportion to the rows. Each measurement is a process of its own, kept on one core. Memory is the peak beyond
what the process holds before it begins, the encoded rows included.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from headstart.columns.checks import disguised_target
from headstart.columns.elapsed import add_elapsed
from headstart.columns.encoders import fit_encoders
from headstart.columns.roles import Roles, choose_roles

NUMBERS, CATEGORIES, DATES = 10, 8, 2
ROLES = Roles(
    tuple(f"category {i}" for i in range(CATEGORIES)),
    tuple(f"number {i}" for i in range(NUMBERS)),
    tuple(f"date {i}" for i in range(DATES)),
)


def table(rows: int, as_text: bool, seed: int = 0) -> pd.DataFrame:
    """Make a table of typed columns, or of the texts that a CSV file would have, as Python objects."""
    rng = np.random.default_rng(seed)
    columns: dict[str, pd.Series] = {}
    for i, name in enumerate(ROLES.continuous):
        values = pd.Series(rng.normal(10 * i, i + 1, rows))
        columns[name] = values.mask(rng.random(rows) < 0.1) if i < 2 else values
    for i, name in enumerate(ROLES.categorical):
        names = pd.array([f"value {j}" for j in range(4 ** (i + 1) if i < 4 else 1000)], dtype="str")
        values = pd.Series(names.take(rng.integers(0, len(names), rows)))
        columns[name] = values.mask(rng.random(rows) < 0.1) if i == 0 else values
    for i, name in enumerate(ROLES.date):
        step = 86_400 if i == 0 else 1  # days; seconds, of which nearly each differs
        columns[name] = pd.Series(np.datetime64("2013-01-01", "s") + rng.integers(0, 10**8 // step, rows) * step)
    if as_text:
        columns = {name: values.astype("str").astype(object) for name, values in columns.items()}
    return pd.DataFrame(columns).set_axis(range(2, rows + 2), axis=0)


def status(field: str) -> int:
    """Return a field of this process's status in bytes."""
    return (
        next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        * 1024
    )


def measure(rows: int, as_text: bool) -> dict[str, float]:
    """Return the seconds of each step, and the additional peak of memory while fitting and encoding."""
    frame = table(rows, as_text)
    fit_encoders(frame.head(100), ROLES).encode(frame.head(100))  # what is imported or compiled once
    pa.default_memory_pool().release_unused()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what making the table has left would hide what is allocated now
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = status("VmRSS")
    start = time.monotonic()
    encoders = fit_encoders(frame, ROLES)
    fitted = time.monotonic()
    encoded = encoders.encode(frame)
    seconds = {"fit": fitted - start, "encode": time.monotonic() - fitted}
    found = {**seconds, "both": sum(seconds.values()), "memory": status("VmHWM") - before}
    found |= {
        "k": len(encoders.categorical_names),
        "m": len(encoders.continuous_names),
        "out": encoded.codes.nbytes + encoded.numbers.nbytes,
    }
    return found | {"roles": seconds_of(lambda: choose_roles(frame))}


def others(rows: int) -> dict[str, float]:
    """Return the seconds of counting days since events, and of looking for the target among the columns of 300,000 rows."""
    rng = np.random.default_rng(0)
    frame = table(rows, as_text=False)
    frame["event"] = rng.integers(0, 2, rows)
    some = frame.head(300_000)
    target = rng.normal(size=len(some))
    return {
        "elapsed": seconds_of(lambda: add_elapsed(frame, "date 0", "event", "category 7")),
        "disguised": seconds_of(lambda: disguised_target(some, ROLES, target)),
    }


def seconds_of(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def in_child(*arguments: str) -> dict[str, float]:
    """Run one measurement in a fresh process on one core."""
    command = [sys.executable, "-m", "bench.columns", "--one", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.columns", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        kind, rows = arguments.one[0], int(arguments.one[1])
        print(json.dumps(others(rows) if kind == "others" else measure(rows, kind == "text")))
        return
    print(f"{processor()}, one core; {NUMBERS} continuous, {CATEGORIES} categorical, {DATES} date columns")
    for kind in ("typed", "text"):
        for rows in arguments.rows:
            found = in_child(kind, str(rows))
            fit, encode, both, peak, out = (found[name] for name in ("fit", "encode", "both", "memory", "out"))
            print(
                f"  {kind:<5} {rows:>9,} rows: fit {fit:.2f} s, encode {encode:.2f} s, together {both:.2f} s"
                f" ({rows / both:,.0f} rows/s); peak {peak / 1e6:,.0f} MB, of which {out / 1e6:,.0f} MB are the"
                f" {found['k']} + {found['m']} encoded columns; choosing roles {found['roles']:.2f} s"
            )
    found, few = in_child("others", str(arguments.rows[-1])), min(300_000, arguments.rows[-1])
    print(f"  days since an event, {arguments.rows[-1]:,} rows: {found['elapsed']:.2f} s")
    print(f"  looking for the target in {few:,} rows x {len(ROLES.names)} columns: {found['disguised']:.2f} s")


if __name__ == "__main__":
    main()
