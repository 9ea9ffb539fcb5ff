"""Run commands, flows and stages in a small project."""

import contextlib
import io
import logging
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import psutil

import flows
from flows.execution import RAN, execute
from flows.param_edits import set_params
from headstart.core import offspring
from headstart.tracking.store import store
from tests import forks

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", "PYTHONWARNINGS": "ignore"}
CANARY = "canary-9f1c77"  # a secret of the environment, which must show up nowhere (tests/test_security.py)
ENVIRONMENT |= {"AWS_SECRET_ACCESS_KEY": CANARY, "TEAM_PASSWORD": CANARY}
for name in [name for name in ENVIRONMENT if name.startswith(("PREFECT_", "MLFLOW_"))]:
    ENVIRONMENT.pop(name)  # what this process set must not leak into another project


def run(project: Path, *command: str, code: int = 0, env: Mapping[str, str] = ENVIRONMENT) -> str:
    """Run a command in a project; returns its output, both streams."""
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def forked_python(folder: Path) -> dict[str, str]:
    """An environment whose `python` is a fork of a process that has torch (tests/forks.py), for a real `dvc repro`: it starts
    a process for each stage, and each would import torch for 4 seconds."""
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.join(forks.command())} "$@"\n')
    python.chmod(0o755)
    return ENVIRONMENT | {"PATH": f"{folder}:{ENVIRONMENT['PATH']}"}


def run_here(project: Path, module: str, *arguments: str, code: int = 0) -> str:
    """What `run` does with `python -m MODULE`, in this process: a second or more faster, and without what only a process can
    show (an import, an exit handler, a signal)."""

    def main() -> int:
        with warnings.catch_warnings(), mock.patch.object(sys, "argv", [module, *arguments]):
            warnings.simplefilter("ignore", RuntimeWarning)  # it has been imported before
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=False)
            except SystemExit as ended:
                return ended.code
        return 0

    return _here(project, main, code)


def dvc_here(project: Path, *arguments: str, code: int = 0) -> str:
    """What `run` does with `dvc`, in this process."""
    from dvc.cli import main as dvc

    log, lines = logging.getLogger("dvc"), logging.StreamHandler()

    def main() -> int:
        lines.setStream(sys.stdout)
        return dvc(list(arguments))

    level = log.level
    log.setLevel(logging.INFO)  # versioning wants errors alone
    try:
        with mock.patch.object(log, "handlers", [lines]):
            return _here(project, main, code)
    finally:
        log.setLevel(level)


def _here(project: Path, main: Callable[[], int], code: int) -> str:
    """Run a command's main in a project; returns what it says. Signal handlers, log handlers and the environment stay."""
    ours, said = logging.getLogger("headstart"), io.StringIO()
    handlers, level, propagate = list(ours.handlers), ours.level, ours.propagate
    with (
        contextlib.chdir(project),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        mock.patch.object(offspring, "_guarded", [os.getpid()]),  # what this process starts is not a run's
        mock.patch.object(signal, "signal"),
        mock.patch.dict(os.environ),
    ):
        try:
            ended = main()
        finally:
            ours.handlers[:], ours.propagate = handlers, propagate
            ours.setLevel(level)
    assert ended == code, said.getvalue()
    return said.getvalue()


def flow(project: Path, *arguments: str, code: int = 0) -> str:
    return run(project, sys.executable, "-m", "flows.pipeline", *arguments, code=code)


def flow_here(project: Path, *arguments: str, code: int) -> str:
    """The same in this process, for what is refused before the flow begins."""
    with mock.patch.object(flows, "PROJECT", project):
        return run_here(project, "flows.pipeline", *arguments, code=code)


def how(project: Path, *assignments: str, force: tuple[str, ...] = ()) -> dict[str, str]:
    """Run the pipeline in this process, without Prefect; what became of each stage."""
    with contextlib.chdir(project):  # as the flow does: DVC resolves paths from the current folder
        params = set_params(project / "params.yaml", assignments)
        return {outcome.stage: outcome.how for outcome in execute(project, params, force).outcomes}


def mlflow_runs(project: Path) -> list:
    client, experiment = store(project)
    return client.search_runs([experiment])


def ran(outcome: dict[str, str]) -> list[str]:
    return [stage for stage, what in outcome.items() if what == RAN]


def command_line(process: psutil.Process) -> list[str]:
    """The words a process was started with; for a moment after exec the kernel has none of them to read."""
    deadline = time.monotonic() + 10
    while not (words := _command_line_now(process)) and is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return words


def _command_line_now(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
