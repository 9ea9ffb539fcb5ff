"""Fill the disk at each stage; the error must name the path, nothing be corrupt, and freed space be enough to go on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.soak.project import check, copy, environment, leftovers, new, outs
from headstart.core.files import remove
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from tests.projects import how

DISK_MB = 96
STEP_BYTES = 48_000  # a stage is given so much more each time, until it gets through


def soak(folder: Path, rounds: int, seed: int, api: str) -> str:
    """Run each stage on a disk that is full at first and has a little more space each time; return a summary in words.

    Args:
        rounds: the most tries of each stage.

    Raises:
        Failure: a stage ended otherwise than in an error that names a file, its outs changed, or a rerun failed.
    """
    original = new(folder / "original")
    how(original)
    wanted = outs(original)
    refused = 0
    with small_disk(folder / "disk") as disk:
        project = copy(original, disk / "project")
        for stage in load_graph(project, load_params(project / "params.yaml")):
            for number in range(rounds):
                with filled(disk, leave=number * STEP_BYTES):
                    done = run_stage(project, stage)
                if done.returncode == 0:
                    break
                message = f"{stage} with {number * STEP_BYTES:,} bytes left: exit {done.returncode}: {done.stderr[-3000:]}"
                check(done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr, message)
                check("space" in done.stderr and str(disk) in done.stderr, message)
                check(outs(project) == wanted, f"{message}\nthe outs differ")
                refused += 1
            done = run_stage(project, stage)
            check(done.returncode == 0, f"{stage} with space again: {done.stderr[-3000:]}")
            check(
                outs(project) == wanted and not leftovers(project),
                f"{stage} with space again: other outs, or leftovers",
            )
    return f"{refused} stages on a full disk: each reported it, nothing was corrupt, and each completed with more space"


def run_stage(project: Path, stage: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-m", f"tasks.{stage}"]
    return subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, check=False)


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """Mount a file system of a few megabytes, which needs root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def filled(disk: Path, leave: int) -> Iterator[None]:
    """Fill a disk but for `leave` bytes while the block runs."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(b"\0" * 4096):
            pass
    with ballast.open("r+b") as stream:
        stream.truncate(max(0, ballast.stat().st_size - leave))
    try:
        yield
    finally:
        remove(ballast)
