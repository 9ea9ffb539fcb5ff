"""What a run starts ends with it, however it ends: here each kind of parent is killed with SIGKILL."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.servers import free_port
from headstart.core import guardian
from headstart.core.liveness import dead
from headstart.core.offspring import KIND
from tests.conftest import REPOSITORY
from tests.projects import ENVIRONMENT, command_line, is_alive

SECONDS = 10
WITHOUT_TOKEN = {name: value for name, value in ENVIRONMENT.items() if name != guardian.NAME}
DEAF = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(600)"
# Guards itself, starts `sys.argv[2:]` in a session of its own, says so, and goes on until a line comes on stdin.
PARENT = """
import subprocess, sys
from pathlib import Path
from headstart.core.offspring import guard
guard(Path(sys.argv[1]))
guard(Path(sys.argv[1]))
subprocess.Popen([sys.executable, "-c", *sys.argv[2:]], start_new_session=True, stdin=subprocess.DEVNULL)
print("started", flush=True)
sys.stdin.readline()
"""
ENDLESS = PARENT + "import time; time.sleep(600)"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").touch()
    return tmp_path


@contextlib.contextmanager
def started(*command: str, cwd: Path = REPOSITORY, **options: object) -> Iterator[subprocess.Popen]:
    """A process of its own session, which ends with the block together with all that is below it."""
    process = subprocess.Popen(command, cwd=cwd, env=WITHOUT_TOKEN, start_new_session=True, **options)
    try:
        yield process
    finally:
        left = below(process) if process.poll() is None else []
        for one in [process, *left]:
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait()


@contextlib.contextmanager
def parent(root: Path, *child: str) -> Iterator[subprocess.Popen]:
    command = (sys.executable, "-c", PARENT, str(root), *child)
    with started(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        yield process


def below(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def find(process: subprocess.Popen, *words: str) -> list[psutil.Process]:
    """What is below a process and was started with these words last."""
    return [one for one in below(process) if is_alive(one) and tuple(command_line(one)[-len(words) :]) == words]


def runs(process: subprocess.Popen, code: str) -> bool:
    """Whether something below a process runs this code. A fork that has not called exec yet shows its parent's words."""
    return any(command_line(one)[1:3] == ["-c", code] for one in below(process))


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(processes: list[psutil.Process], seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def nothing_outlives(process: subprocess.Popen, *names: str) -> None:
    """Kill a process; nothing below it lives on. `names` are of what must have been there."""
    there = below(process)
    lines = [" ".join(command_line(one)) for one in there]
    assert all(any(name in line for line in lines) for name in (*names, "guardian.py")), lines
    process.kill()
    process.wait()
    assert gone(there)


def guardians(process: subprocess.Popen) -> list[psutil.Process]:
    return [one for one in below(process) if any("guardian.py" in word for word in command_line(one))]


@pytest.mark.parametrize("child", ["import time; time.sleep(600)", DEAF])
def test_a_child_ends_with_a_parent_that_is_killed(root, child):
    with parent(root, child) as process:
        assert len(guardians(process)) == 1, "however often it is called"
        nothing_outlives(process, "sleep(600)")
    until(lambda: not list((root / ".headstart/alive").iterdir()), SECONDS)


ENDS = {
    "at its end": "pass",
    "by an exception": "raise ValueError('on purpose')",
    "by an exit": "sys.exit(3)",
    "by SIGTERM": "import os, signal; signal.signal(15, lambda *_: sys.exit(143)); os.kill(os.getpid(), 15); time.sleep(9)",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_child_ends_with_a_parent_that_ends_by_itself(root, how):
    code = f"{PARENT}import time\n{ENDS[how]}\n"
    with started(sys.executable, "-c", code, str(root), "import time; time.sleep(600)", stdin=subprocess.PIPE,
                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # fmt: skip
        assert process.stdout.readline() == "started\n"
        there = below(process)
        assert any("sleep(600)" in " ".join(command_line(one)) for one in there)
        process.stdin.write("\n")
        process.stdin.close()
        process.wait(30)
        assert gone(there)
    assert not list((root / ".headstart/alive").iterdir())


def test_a_grandchild_that_guards_itself_ends_too(root):
    with parent(root, ENDLESS, str(root), DEAF) as process:
        until(lambda: find(process, "-c", DEAF))
        assert len(below(process)) == 4
        nothing_outlives(process)


def test_a_grandchild_of_a_child_that_died_before_ends_too(root):
    """It is nobody's child any more: only its environment tells where it comes from."""
    with parent(root, ENDLESS, str(root), DEAF) as process:
        until(lambda: find(process, "-c", DEAF))
        there = below(process)
        (deaf,), child = find(process, "-c", DEAF), next(one for one in there if ENDLESS in command_line(one))
        (guard,) = [one for one in guardians(process) if one.ppid() == child.pid]
        guard.kill()
        child.kill()
        until(lambda: not is_alive(child))
        assert is_alive(deaf) and deaf not in below(process)
        process.kill()
        process.wait()
        assert gone(there)


def test_a_normal_end_leaves_no_guardian_and_no_record(root):
    with parent(root, "pass") as process:
        there = guardians(process)
        assert there and dead(root, KIND) == []
        process.communicate("\n")
        assert process.returncode == 0
        assert not any(map(is_alive, there)), "it is gone when its parent is"
    assert not list((root / ".headstart/alive").iterdir())


def test_who_has_started_nothing_of_it_is_left_alone(root):
    """Neither what was started by hand, nor a run beside it, nor what a run left that ended as it should."""
    with started(sys.executable, "-c", DEAF, cwd=root) as by_hand, parent(root, DEAF) as other:
        beside = [psutil.Process(by_hand.pid), psutil.Process(other.pid), *below(other)]
        with parent(root, "pass") as process:
            nothing_outlives(process)
        assert all(map(is_alive, beside))


def test_a_run_in_a_copy_of_the_project_leaves_the_originals_processes_alone(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "project"
    with parent(root, DEAF) as process:
        there = below(process)
        shutil.copytree(root, copy)
        with parent(copy, "pass") as other:
            nothing_outlives(other)
        assert len(there) == 2 and all(map(is_alive, there))


def test_the_next_start_ends_what_is_left_where_the_guardian_was_killed_too(root):
    with parent(root, DEAF) as process:
        (guard,) = guardians(process)
        (child,) = [one for one in below(process) if one != guard]
        guard.kill()
        process.kill()
        process.wait()
        assert is_alive(child) and len(dead(root, KIND)) == 1
        with parent(root, "pass"):
            assert gone([child])
            assert dead(root, KIND) == []


def test_a_signal_to_all_does_not_end_the_guardian_first(root):
    with parent(root, DEAF) as process:
        (guard,) = guardians(process)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            guard.send_signal(number)
        nothing_outlives(process)


def test_nothing_is_written_where_there_is_no_project(tmp_path):
    with parent(tmp_path, "pass") as process:
        process.communicate("\n")
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_forked_ends_no_guardian_and_hides_no_death(root):
    forks = "import os, sys, time\nif not os.fork():\n    time.sleep(.3); sys.exit()"
    code = PARENT.replace("print(", f"exec({forks!r})\nos.wait()\nif not os.fork(): time.sleep(2); os._exit(0)\nprint(")
    command = (sys.executable, "-c", code, str(root), DEAF)
    with started(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        assert len(guardians(process)) == 1, "a fork that ended has not taken it along"
        there = below(process)
        process.kill()
        process.wait()
        assert gone(there)


WORKER = f"import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'ready\\n'); {DEAF}"
# A scan, and a prediction, whose workers hang for ever, and hear of nothing.
SCAN = """
import functools, sys
from tasks.link_data import link_data
from headstart.core.command_line import main
from headstart.ingest import scan
scan.examine_all = functools.partial(scan.examine_all, command=[sys.executable, "-c", sys.argv[1]])
main("link_data", link_data)
"""
PREDICTION = """
import functools, sys
from headstart.core.command_line import command_line, guarded
from headstart.prediction import batch
from flows.predict import main
batch.score_all = functools.partial(batch.score_all, command=[sys.executable, "-c", sys.argv.pop(1)])
command_line()
sys.exit(guarded(main))
"""


def test_the_workers_of_a_scan_end_with_it(project):
    with started(sys.executable, "-c", SCAN, WORKER, cwd=project, stderr=subprocess.DEVNULL) as process:
        until(lambda: runs(process, WORKER))
        nothing_outlives(process, "ready")


def test_the_classifier_of_a_prediction_ends_with_it(done, shapes, tmp_path):
    arguments = ("--images", str(shapes), "--out", str(tmp_path / "p.csv"), "--model", "models/fine_tuned.safetensors")
    command = (sys.executable, "-c", PREDICTION, DEAF, *arguments)
    with started(*command, cwd=done, stderr=subprocess.DEVNULL) as process:
        until(lambda: runs(process, DEAF))
        nothing_outlives(process, "sleep(600)")


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
        return True
    return False


def listens(process: subprocess.Popen, word: str) -> bool:
    """Whether something below a process that has a word in its command line listens on a port."""
    for one in below(process):
        with contextlib.suppress(psutil.Error):
            if word in " ".join(command_line(one)) and any(c.status == psutil.CONN_LISTEN for c in one.net_connections()):
                return True
    return False


@pytest.mark.e2e
def test_prefects_server_ends_with_a_pipeline(project):
    with started(sys.executable, "-m", "flows.pipeline", cwd=project) as process:
        until(lambda: listens(process, "uvicorn"), 120)
        nothing_outlives(process, "uvicorn")


@pytest.mark.e2e
def test_servers_end_with_the_ui(project):
    ports = free_port(5400), free_port(4400)
    command = (sys.executable, "-m", "flows.ui", "--mlflow-port", str(ports[0]), "--prefect-port", str(ports[1]))
    with started(*command, cwd=project) as process:
        until(lambda: all(map(answers, ports)), 180)
        nothing_outlives(process, "mlflow", "flows.prefect_server")


@pytest.mark.e2e
def test_server_and_worker_end_with_the_schedule(project):
    with started(sys.executable, "-m", "flows.schedule", "--port", str(free_port(4500)), cwd=project) as process:
        until(lambda: any("worker" in command_line(one) for one in below(process)), 180)
        nothing_outlives(process, "flows.prefect_server", "worker")


def hanging(project: Path) -> None:
    """Have the stage link_data start a worker that hangs."""
    path = project / "tasks/link_data.py"
    line = "meddled.examine_all = functools.partial(meddled.examine_all, command=[sys.executable, '-c', WORKER])\n"
    meddling = f"from headstart.ingest import scan as meddled\nWORKER = {WORKER!r}\n{line}\n"
    text = path.read_text()
    assert "\n\ndef link_data(" in text
    path.write_text(text.replace("\n\ndef link_data(", f"\n{meddling}\n\ndef link_data(", 1))


@pytest.mark.e2e
@pytest.mark.parametrize("victim", ["dvc", "tasks.link_data"])
def test_a_stage_of_dvc_and_its_workers_end_with_it_and_with_dvc(project, victim):
    hanging(project)
    dvc = Path(sys.executable).with_name("dvc")
    with started(str(dvc), "repro", "link_data", cwd=project) as process:
        until(lambda: process.poll() is not None or any(WORKER in command_line(one) for one in below(process)), 120)
        there = below(process)
        (stage,) = [one for one in there if command_line(one)[1:3] == ["-m", "tasks.link_data"]]
        own = stage.children(recursive=True)
        if victim == "dvc":
            process.kill()
            process.wait()
            assert gone([stage, *own], 2 * SECONDS)
        else:
            stage.kill()
            assert gone(own)
            assert process.wait(60) != 0
