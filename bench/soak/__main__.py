"""Run the soak: `python -m bench.soak [PART …] [--rounds N] [--seed N]`. Each part has its own number of rounds, or N."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.soak import crashes, crowd, flips, full_disk, kills, turns
from bench.soak.project import Failure, prefect_server

PARTS = {
    "kills": (kills.soak, 50),
    "turns": (turns.soak, 100),
    "crashes": (crashes.soak, 600),
    "flips": (flips.soak, 1000),
    "crowd": (crowd.soak, 50),
    "full_disk": (full_disk.soak, 40),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, help="rounds of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return int(not passed(options.parts[0], options.rounds, options.seed, options.inside))
    command = [sys.executable, "-m", "bench.soak", "--seed", str(options.seed)]
    command += ["--rounds", str(options.rounds)] if options.rounds else []
    with tempfile.TemporaryDirectory(prefix="soak-server-") as home, prefect_server(Path(home)) as api:
        parts = [subprocess.run([*command, name, "--inside", api], check=False) for name in options.parts or PARTS]
    return sum(part.returncode != 0 for part in parts)


def passed(name: str, rounds: int | None, seed: int, api: str) -> bool:
    """Run one part, print the result, and return whether it passed."""
    soak, own = PARTS[name]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            result = soak(Path(folder), rounds or own, seed, api)
        except Failure as failure:
            result = f"FAILED: {failure}"
    print(f"{name}: {result} ({time.monotonic() - start:,.0f} s)", flush=True)
    return "FAILED" not in result


if __name__ == "__main__":
    sys.exit(main())
