"""A file that hangs or crashes a decoder costs that file and nothing else."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from headstart.data import scan as scan_module
from headstart.data.examine import Limits
from headstart.data.workers import examine_all
from tests.conftest import scan_folder
from tests.test_rescan import settle

LIMITS = Limits(10_000, 4, ("PNG",))
# A worker whose decoder hangs, dies, or dies the first time only, by the file's name.
TROUBLED = """
import json, os, sys, time
from pathlib import Path
from headstart.data import worker
real = worker.examine
def examine(path, limits):
    name = Path(path).name
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("huge"):
        bytearray(12 << 30)
    if name.startswith("crash"):
        os.kill(os.getpid(), 11)
    if name.startswith("once") and not os.path.exists("/tmp/seen-" + str(os.getppid())):
        open("/tmp/seen-" + str(os.getppid()), "w").close()
        os._exit(7)
    return real(path, limits)
worker.examine = examine
worker.main(int(sys.argv[1]), worker.Limits(**json.loads(sys.argv[2])))
"""
COMMAND = (sys.executable, "-c", TROUBLED)


def test_hanging_and_crashing_files_are_given_up_and_all_others_read(shapes, monkeypatch):
    Path(f"/tmp/seen-{os.getpid()}").unlink(missing_ok=True)
    for name in ("hang.png", "crash.png", "once.png"):
        (shapes / "a" / name).write_bytes((shapes / "a" / "000.png").read_bytes())
    settle()
    monkeypatch.setattr(scan_module, "examine_all", lambda *arguments: examine_all(*arguments, command=COMMAND))
    start = time.monotonic()
    result = scan_folder(shapes, timeout=1.5)
    assert time.monotonic() - start < 30
    assert len(result.manifest) == 61, "the one that died once was read at the second try"
    reasons = dict(result.quarantine.to_numpy().tolist())
    assert reasons == {
        "a/hang.png": "not decoded within 1.5 seconds (data.file_timeout)",
        "a/crash.png": "the decoder crashed (SIGSEGV)",
    }
    result = scan_folder(shapes, timeout=1.5)
    assert result.reread == 2, "the machine may have been at fault: such files are tried anew each time"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_answers_come_in_order_from_any_number_of_workers(shapes, workers):
    paths = sorted(str(path) for path in shapes.rglob("*.png")) * 4
    answers = list(examine_all(paths, LIMITS, 20, workers))
    one = dict(zip(paths[:60], answers, strict=False))
    assert answers == [one[path] for path in paths]


def test_no_worker_outlives_its_caller(shapes):
    def children() -> set[str]:
        return set(Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split())

    paths = sorted(str(path) for path in shapes.rglob("*.png")) * 20
    answers = examine_all(paths, LIMITS, 20, 2)
    next(answers)
    answers.close()
    assert not [child for child in children() if "headstart.data.worker" in Path(f"/proc/{child}/cmdline").read_text()]


def test_stopping_the_scan_does_not_wait_for_a_hanging_file(shapes):
    (shapes / "a" / "hang.png").touch()
    paths = [str(shapes / "a" / "000.png")] * 40 + [str(shapes / "a" / "hang.png")]
    answers = examine_all(paths, LIMITS, 600, 2, command=COMMAND)
    next(answers)
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 5


def test_a_worker_that_cannot_start_is_a_bug_that_shows_why():
    broken = (sys.executable, "-c", "raise SystemExit('no such module here')")
    with pytest.raises(RuntimeError, match="no such module here"):
        list(examine_all(["x"], LIMITS, 5, 1, command=broken))


def test_memory_of_a_worker_is_bounded(shapes):
    (shapes / "a" / "huge.png").write_bytes((shapes / "a" / "000.png").read_bytes())
    paths = [str(shapes / "a" / name) for name in ("000.png", "huge.png", "001.png")]
    first, huge, last = examine_all(paths, LIMITS, 20, 1, command=COMMAND)
    assert first["key"] and last["key"]
    if sys.platform == "linux":
        assert huge == {"failed": "the decoder crashed (exit 1)"}
