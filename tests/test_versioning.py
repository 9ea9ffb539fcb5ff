"""DVC's list of readers and writers is believed where a dvc command of that time stands behind it, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from headstart.core.errors import Unavailable
from headstart.versioning import _refuse_a_running_stage

SLEEP = "import time; time.sleep(600)"
PYTHON = (sys.executable, "-c", SLEEP)


@contextlib.contextmanager
def process(*command: str) -> Iterator[int]:
    started = subprocess.Popen(command)
    try:
        while psutil.Process(started.pid).cmdline() != list(command):  # it is the command only after exec
            time.sleep(0.01)
        yield started.pid
    finally:
        started.kill()
        started.wait()


def listed(folder: Path, number: int, command: str = "/bin/dvc repro", kind: str = "write") -> Path:
    info = {"pid": number, "cmd": command}
    path = folder / "rwlock"
    path.write_text(json.dumps({"read": {}, "write": {}} | {kind: {"/models/x": info if kind == "write" else [info]}}))
    return path


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize(
    "command",
    [(*PYTHON, "/venv/bin/dvc", "repro"), (*PYTHON, "-m", "dvc", "repro"), (*PYTHON, "-m", "tasks.precompute")],
)
def test_a_dvc_command_or_a_stage_that_runs_is_named(tmp_path, command, kind):
    with process(*command) as number:
        path = listed(tmp_path, number, kind=kind)
        with pytest.raises(Unavailable, match=f"process {number}"):
            _refuse_a_running_stage(path)
        assert path.exists(), "its entry stays"


def test_a_script_that_uses_dvc_as_a_library_is_named(tmp_path):
    (tmp_path / "train.py").write_text(SLEEP)
    with process(sys.executable, str(tmp_path / "train.py"), "x") as number, pytest.raises(Unavailable, match=f"{number}"):
        _refuse_a_running_stage(listed(tmp_path, number, f"{tmp_path}/train.py x"))


@pytest.mark.parametrize(
    "command",
    [("sleep", "600"), PYTHON, ("tail", "-f", "/dev/null", "dvc.yaml"), (*PYTHON, "dvc.yaml"), (*PYTHON, "/x/dvc/y.py")],
)
def test_an_innocent_process_with_the_same_id_is_not_believed_and_the_list_is_removed(tmp_path, command):
    with process(*command) as number:
        path = listed(tmp_path, number)
        _refuse_a_running_stage(path)
        assert not path.exists(), "DVC itself would refuse"


def test_a_dvc_command_that_began_after_the_list_was_written_is_another(tmp_path):
    with process(*PYTHON, "dvc", "status") as number:
        path = listed(tmp_path, number)
        began = psutil.Process(number).create_time()
        os.utime(path, (began - 60, began - 60))
        _refuse_a_running_stage(path)
        assert not path.exists()


@pytest.mark.parametrize("number", [2**22 + 1, os.getpid()], ids=["dead", "own"])
def test_a_dead_process_and_our_own_number_are_stale(tmp_path, number):
    path = listed(tmp_path, number)
    _refuse_a_running_stage(path)
    assert not path.exists()


@pytest.mark.parametrize("text", ["[]", "3", '{"write": {"/some/pa', ""])
def test_a_damaged_list_is_removed(tmp_path, text):
    (tmp_path / "rwlock").write_text(text)
    _refuse_a_running_stage(tmp_path / "rwlock")
    assert not (tmp_path / "rwlock").exists()


def test_no_list_and_an_empty_one_are_fine(tmp_path):
    _refuse_a_running_stage(tmp_path / "rwlock")
    (tmp_path / "rwlock").write_text('{"read": {}, "write": {}}')
    _refuse_a_running_stage(tmp_path / "rwlock")
