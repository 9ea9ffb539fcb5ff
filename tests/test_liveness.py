"""Who is alive is told by a lock, which any death releases."""

import shutil
import subprocess
import sys

import pytest

from headstart.core.errors import InputError, Unavailable, is_transient
from headstart.core.liveness import alive, dead, forget
from headstart.tracking import pending

DYING = """
import os, signal, sys
from pathlib import Path
from headstart.core.liveness import alive
with alive(Path(sys.argv[1]), "mlflow", "abc"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_living_run_is_not_dead_and_an_ended_one_leaves_nothing(tmp_path):
    with alive(tmp_path, "mlflow", "abc"):
        assert dead(tmp_path, "mlflow") == []
    assert dead(tmp_path, "mlflow") == []
    assert not list((tmp_path / ".headstart/alive").iterdir())


def test_a_killed_run_is_dead_until_it_is_forgotten(tmp_path):
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=False).returncode == -9
        assert dead(tmp_path, "mlflow") == ["abc"]
        assert dead(tmp_path, "prefect") == []
    with alive(tmp_path, "mlflow", "other"):
        assert dead(tmp_path, "mlflow") == ["abc"]
    forget(tmp_path, "mlflow", "abc")
    assert dead(tmp_path, "mlflow") == []


def test_a_run_whose_end_could_not_be_recorded_counts_as_dead(tmp_path):
    with alive(tmp_path, "mlflow", "abc", until_forgotten=True):
        assert dead(tmp_path, "mlflow") == []
    assert dead(tmp_path, "mlflow") == ["abc"]
    with alive(tmp_path, "mlflow", "other", until_forgotten=True):
        forget(tmp_path, "mlflow", "other")
    assert dead(tmp_path, "mlflow") == ["abc"]


def test_a_living_run_is_alive_in_a_copy_of_its_project_too(tmp_path):
    """Whoever copies a project while it runs would else end the run's processes and close its records, from the copy."""
    project, copy, moved = (tmp_path / name for name in ("project", "copy", "moved"))
    with alive(project, "run", "abc"):
        shutil.copytree(project, copy)
        shutil.copytree(copy, tmp_path / "copy of the copy")
        assert dead(copy, "run") == dead(tmp_path / "copy of the copy", "run") == []
        project.rename(moved)
        assert dead(moved, "run") == []
        moved.rename(project)
    assert dead(copy, "run") == ["abc"]
    with alive(project, "run", "other"):
        assert dead(copy, "run") == ["abc"]


def test_what_is_pending_stays_so_until_it_is_settled(tmp_path):
    assert not pending.is_due(tmp_path, "record")
    pending.note(tmp_path, "record")
    pending.note(tmp_path, "record")
    assert pending.is_due(tmp_path, "record") and not pending.is_due(tmp_path, "register")
    pending.settle(tmp_path, "record")
    assert not pending.is_due(tmp_path, "record")


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError(5, "Input/output error"), True),
        (ConnectionResetError(104, "reset"), True),
        (Unavailable("no network"), True),
        (OSError(28, "No space left on device"), False),
        (PermissionError(13, "denied"), False),
        (TimeoutError("the stage's own time-out"), False),
        (InputError("bad"), False),
        (ValueError("a bug"), False),
        (None, False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, transient):
    assert is_transient(error) is transient
