"""Kill a stage at each system call that writes, renames, syncs or deletes; a plain rerun must recover.

strace enumerates the calls. To save the imports, each run is a fork of this process, which has done them, and strace is
attached before the run begins.
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path

from bench.soak.project import REPRO, Digests, check, leftovers, new, outs, run
from headstart.core.graph import load_graph
from headstart.core.params import load_params

CALLS = ("rename", "renameat", "renameat2", "fsync", "fdatasync", "write", "pwrite64", "ftruncate", "mkdir", "rmdir",
         "unlink", "unlinkat", "sendfile", "copy_file_range")  # fmt: skip
EACH = 14  # the most points of one kind in one stage; they are evenly spaced
Point = tuple[str, str, int]  # stage, call, its number


def soak(folder: Path, rounds: int, seed: int, api: str) -> str:
    """Try `rounds` evenly chosen crash points (at most all that EACH leaves), and return a summary in words.

    Raises:
        Failure: a rerun failed, its outs differ, or it left something behind.
    """
    project = new(folder / "crashes")
    check(run(project, REPRO).returncode == 0, "the first run failed")
    wanted = outs(project)
    stages = list(load_graph(project, load_params(project / "params.yaml")))
    for stage in stages:
        importlib.import_module(f"tasks.{stage}")
    check(threading.active_count() == 1, "a process with threads cannot be forked")
    points = [point for stage in stages for point in enumerated(project, stage, folder)]
    step = max(1, len(points) // rounds)
    points = points[::step][:rounds]
    hit: Counter[str] = Counter()
    for point in points:
        hit[recovered(project, point, wanted, folder)] += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(hit.items()))
    return f"{len(points)} crash points ({kinds}): all recovered by a plain rerun, the same bytes"


def enumerated(project: Path, stage: str, folder: Path) -> list[Point]:
    """List the crash points of an undisturbed run of a stage."""
    trace = folder / "trace"
    pid = forked(project, stage, ["-o", str(trace), "-e", f"trace={','.join(CALLS)}"])
    check(pid[1] == 0, f"{stage} failed under strace: {pid[1]}")
    calls = Counter(match[2] for match in re.finditer(r"^(\d+) +(\w+)\(", trace.read_text(), re.M) if int(match[1]) == pid[0])
    points = []
    for call, total in sorted(calls.items()):
        numbers = range(1, total + 1) if total <= EACH else [1 + i * (total - 1) // (EACH - 1) for i in range(EACH)]
        points += [(stage, call, number) for number in numbers]
    return points


def recovered(project: Path, point: Point, wanted: Digests, folder: Path) -> str:
    """Kill a stage at a point, run it again and compare; return the call, or that it was not reached."""
    stage, call, number = point
    _, code = forked(
        project, stage, ["-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    )
    _, again = forked(project, stage, None)
    check(again == 0, f"{point}: the rerun failed ({again}): {(project / 'stage.log').read_text()[-3000:]}")
    found = outs(project)
    check(found == wanted, f"{point}: the outs differ: {[name for name in wanted if found.get(name) != wanted[name]]}")
    check(not leftovers(project), f"{point}: left behind: {leftovers(project)}")
    return call if code == -signal.SIGKILL else "not reached"


def forked(project: Path, stage: str, strace: list[str] | None) -> tuple[int, int]:
    """Run a stage as `python -m tasks.STAGE` in a fork of this process, with strace attached; return (pid, exit code)."""
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        _child(project, stage, ready)
    os.close(ready)
    tracer = None
    if strace is not None:
        tracer = subprocess.Popen(["strace", "-f", "-p", str(pid), *strace], stderr=subprocess.PIPE)
        assert tracer.stderr is not None
        check(bool(select.select([tracer.stderr], [], [], 20)[0]), "strace does not attach")
        check(b"attached" in os.read(tracer.stderr.fileno(), 1000), "strace does not attach")
        threading.Thread(target=tracer.stderr.read, daemon=True).start()
    os.write(go, b"x")
    os.close(go)
    _, status = os.waitpid(pid, 0)
    if tracer is not None:
        tracer.wait()
    return pid, os.waitstatus_to_exitcode(status)


def _child(project: Path, stage: str, ready: int) -> None:
    """Run `python -m tasks.STAGE` and end the process whatever happens, because it must not continue as its parent."""
    code = 70
    try:
        os.chdir(project)
        log = os.open("stage.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.read(ready, 1)
        sys.argv = [f"tasks.{stage}"]
        runpy.run_module(f"tasks.{stage}", run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        os._exit(code)
