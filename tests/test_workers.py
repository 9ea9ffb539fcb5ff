"""A file that hangs or crashes a decoder costs that file and nothing else."""

import os
import resource
import sys
import threading
import time
from pathlib import Path

import pytest

from headstart.core.errors import InputError, Unavailable
from headstart.images.limits import Limits
from headstart.ingest import scan as scan_module
from headstart.ingest import workers
from headstart.ingest.workers import examine_all
from tests.conftest import scan_folder
from tests.test_rescan import settle

LIMITS = Limits(10_000, 4, ("PNG",))
# A worker whose decoder hangs, dies, or dies the first time only, by the file's name.
TROUBLED = """
import json, os, sys, time
from pathlib import Path
from headstart.ingest import worker
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
    assert not [child for child in children() if "headstart.ingest.worker" in Path(f"/proc/{child}/cmdline").read_text()]


def test_stopping_the_scan_does_not_wait_for_a_hanging_file(shapes):
    (shapes / "a" / "hang.png").touch()
    paths = [str(shapes / "a" / "000.png")] * 40 + [str(shapes / "a" / "hang.png")]
    answers = examine_all(paths, LIMITS, 600, 2, command=COMMAND)
    next(answers)
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise SystemExit('no such library here')", r"\(exit 1\): no such library here"),
        ("raise MemoryError('at the start')", r"\(exit 1\): MemoryError: at the start"),
        ("import os; os.kill(os.getpid(), 9)", r"\(SIGKILL\): no error output"),
    ],
)
def test_a_worker_that_cannot_start_is_reported_with_what_it_said(code, told):
    with pytest.raises(InputError, match=told) as error:
        list(examine_all(["x"], LIMITS, 5, 1, command=(sys.executable, "-c", code)))
    assert "Traceback" not in str(error.value) and len(str(error.value).splitlines()) < 5


def test_a_worker_that_never_gets_ready_is_reported(monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 1.0)
    with pytest.raises(InputError, match="not ready within 1 s"):
        list(examine_all(["x"], LIMITS, 5, 1, command=(sys.executable, "-c", "import time; time.sleep(600)")))


def test_a_worker_for_which_no_process_is_left_is_reported():
    with pytest.raises(Unavailable, match="could not be started: No such file"):
        list(examine_all(["x"], LIMITS, 5, 1, command=("/no/such/python",)))


@pytest.mark.skipif(sys.platform != "linux", reason="no limit is set elsewhere")
@pytest.mark.parametrize("limits", [(6 << 30, 6 << 30), (4 << 30, resource.RLIM_INFINITY), (6 << 30, 12 << 30)])
def test_a_worker_keeps_to_a_limit_of_address_space_that_is_there(shapes, limits):
    """It wants 6.2 GB for images of up to 50 MP."""
    code = (
        "import resource, runpy, sys; soft, hard = map(int, sys.argv[1:3])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (soft, hard)); del sys.argv[1:3]\n"
        "set_limit = resource.setrlimit\n"
        "def within(what, pair):\n    assert pair[0] <= soft and pair[1] == hard; set_limit(what, pair)\n"
        "resource.setrlimit = within\n"
        "runpy.run_module('headstart.ingest.worker', run_name='__main__')"
    )
    command = (sys.executable, "-c", code, *map(str, limits))
    (answer,) = examine_all([str(shapes / "a/000.png")], Limits(50_000_000, 4, ("PNG",)), 20, 1, command=command)
    assert answer["key"]


@pytest.mark.skipif(sys.platform != "linux", reason="no limit is set elsewhere")
def test_a_limit_too_low_for_a_worker_is_named(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (100 << 20, 100 << 20))
    command = ("sh", "-c", f'ulimit -v 102400; exec {sys.executable} -m headstart.ingest.worker "$@"', "sh")
    with pytest.raises(
        InputError, match=r"no limit on the address space, or a higher one: it is 0\.1 GB here \(`ulimit -v`\)"
    ) as error:
        list(examine_all(["x"], LIMITS, 5, 1, command=command))
    assert "Traceback" not in str(error.value)


def test_memory_of_a_worker_is_bounded(shapes):
    (shapes / "a" / "huge.png").write_bytes((shapes / "a" / "000.png").read_bytes())
    paths = [str(shapes / "a" / name) for name in ("000.png", "huge.png", "001.png")]
    first, huge, last = examine_all(paths, LIMITS, 20, 1, command=COMMAND)
    assert first["key"] and last["key"]
    if sys.platform == "linux":
        assert huge == {"failed": "the decoder crashed (exit 1)"}
