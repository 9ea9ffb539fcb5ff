"""A full disk at each stage: the error names the path, nothing is corrupt, and freeing space is enough."""

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
    """Each stage on a disk that is full at first and has a little more room each time; what came of it, in words.

    Args:
        rounds: how often each stage is tried, at most.

    Raises:
        Failure: another end than an error that names a file, outs that are not as before, or a rerun that fails.
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
                told = f"{stage} with {number * STEP_BYTES:,} bytes left: exit {done.returncode}: {done.stderr[-3000:]}"
                check(done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr, told)
                check("space" in done.stderr and str(disk) in done.stderr, told)
                check(outs(project) == wanted, f"{told}\nother outs")
                refused += 1
            done = run_stage(project, stage)
            check(done.returncode == 0, f"{stage} with room again: {done.stderr[-3000:]}")
            check(outs(project) == wanted and not leftovers(project), f"{stage} with room again: other outs, or something left")
    return f"{refused} stages on a full disk: each said so, nothing corrupt, and completed with room"


def run_stage(project: Path, stage: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-m", f"tasks.{stage}"]
    return subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, check=False)


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of a few megabytes (root mounts it)."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def filled(disk: Path, leave: int) -> Iterator[None]:
    """All of a disk taken but for so many bytes."""
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
