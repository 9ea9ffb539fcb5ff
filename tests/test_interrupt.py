"""Ctrl-C in a terminal: it goes to all processes of the run at once, Prefect's server among them."""

import os
import pty
import select
import signal
import sys
import time

import pytest

from headstart.core.params import load_params
from headstart.versioning import workspace
from tests.projects import ENVIRONMENT, flow


def in_terminal(project, *arguments: str, until: bytes, then: bytes) -> tuple[int, float, str]:
    """Run the flow in a terminal and type something once it has said something: exit code, seconds, what it said then."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a terminal's shell has it: a script's `&` would have it ignored
        os.execve(sys.executable, [sys.executable, "-m", "flows.pipeline", *arguments], ENVIRONMENT)
    said, typed, start, deadline = b"", 0, 0.0, time.monotonic() + 180
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                said += os.read(terminal, 1 << 16)
            except OSError:  # the other side has ended
                break
        if not typed and until in said:
            time.sleep(1)
            os.write(terminal, then)
            typed, start = len(said), time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, time.monotonic() - start, said[typed:].decode(errors="replace")


@pytest.mark.e2e
def test_ctrl_c_ends_soon_says_so_and_the_same_command_goes_on(project):
    code, seconds, said = in_terminal(project, "--set", "fine_tune.epochs=300", until=b"fine_tune: running", then=b"\x03")
    assert code == 130, said
    assert seconds < 30 and "interrupted: finished stages and epochs are kept" in said
    assert "Traceback" not in said and "EventsWorker" not in said and "PREFECT_API_URL" not in said
    assert "train_head: fresh" in flow(project, "--set", "fine_tune.epochs=1")


def test_a_run_s_parameters_are_not_changed_under_it(project):
    """It was refused after its hour of training, and `run again` took the other's parameters."""
    before = (project / "params.yaml").read_bytes()
    with workspace(project):
        said = flow(project, "--set", "seed=7", code=2)
    assert "DVC's lock is held by" in said and "wait until it has ended" in said
    assert (project / "params.yaml").read_bytes() == before
    assert load_params(project / "params.yaml").seed != 7
