"""Measure training beside other work on the same cores, by how long OpenMP's threads spin: `python -m bench.neighbours`.

It times a training step of all layers of EfficientNet-lite0, 96 px, batches of 32, beside 0, 1 and 2 busy Python loops. Each
setting has a process of its own, which sleeps while another is measured; settings alternate; medians of rounds. The output
shows the load of other programs, because on a busy machine "beside 0" is beside them. One row is what Headstart itself sets.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

NEIGHBOURS = (0, 1, 2)
SIZE = 96
SPIN = "GOMP_SPINCOUNT"
SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's own (spins 300,000 times)": {SPIN: "300000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    f"{SPIN}=100": {SPIN: "100"},
    f"{SPIN}=1000": {SPIN: "1000"},
    f"{SPIN}=3000": {SPIN: "3000"},
    f"{SPIN}=10000": {SPIN: "10000"},
    f"{SPIN}=30000": {SPIN: "30000"},
    f"{SPIN}=100000": {SPIN: "100000"},
    "as Headstart sets it": {},
}


class Side:
    """A process with one setting, which trains on request."""

    def __init__(self, setting: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", SPIN)}
        command = [sys.executable, "-m", "bench.neighbours", "--child"]
        self.process = subprocess.Popen(
            command, env={**inherited, **setting}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def answer(self) -> float:
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())

    def seconds(self, steps: int) -> float:
        """Return the seconds of one step, the mean of `steps` in a row."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def child() -> None:
    """Take the number of steps that each line of stdin states, and answer with the seconds of one."""
    from bench.depthwise import step

    one = step(SIZE, None)(True)
    for _ in range(3):
        one()
    print(0.0, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            one()
        print((time.perf_counter() - start) / int(line), flush=True)


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """Run processes that only compute while the block runs, a minute at most."""
    loop = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: sum(range(10_000))"
    started = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(number)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(names: Sequence[str], rounds: int, steps: int) -> dict[str, dict[int, float]]:
    """Return the median seconds of a step by setting and number of neighbours."""
    sides = {name: Side(SETTINGS[name]) for name in names}
    found: dict[tuple[str, int], list[float]] = {(name, number): [] for name in names for number in NEIGHBOURS}
    try:
        for _ in range(rounds):
            for number in NEIGHBOURS:
                for name, side in sides.items():
                    with busy(number):
                        found[name, number].append(side.seconds(steps))
                        print(f"{name}, beside {number}: {found[name, number][-1]:.3f} s", file=sys.stderr, flush=True)
    finally:
        for side in sides.values():
            side.end()
    return {name: {number: statistics.median(found[name, number]) for number in NEIGHBOURS} for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--settings", nargs="+", type=int, help="numbers of the settings, from 0; the first is the baseline")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child()
    every = list(SETTINGS)
    names = [every[index] for index in options.settings or range(len(every))]
    before = os.getloadavg()[0]
    found = measure(names, options.rounds, options.steps)
    print(f"{len(os.sched_getaffinity(0))} cores; load of the last minute: {before:.1f} before, {os.getloadavg()[0]:.1f} after")
    print("\n| ms a step | alone | beside 1 | beside 2 | beside 2, times alone | alone, times spinning |")
    print("|---|---|---|---|---|---|")
    for name, seconds in found.items():
        cells = [f"{1e3 * seconds[number]:.0f}" for number in NEIGHBOURS]
        print(f"| {name} | {' | '.join(cells)} | {seconds[2] / seconds[0]:.1f} | {seconds[0] / found[names[0]][0]:.3f} |")


if __name__ == "__main__":
    main()
