"""Run commands, flows and stages in a small project."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from flows.execution import RAN, execute
from flows.param_edits import set_params
from headstart.tracking.store import store

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", "PYTHONWARNINGS": "ignore"}
CANARY = "canary-9f1c77"  # a secret of the environment, which must show up nowhere (tests/test_security.py)
ENVIRONMENT |= {"AWS_SECRET_ACCESS_KEY": CANARY, "TEAM_PASSWORD": CANARY}
for name in [name for name in ENVIRONMENT if name.startswith(("PREFECT_", "MLFLOW_"))]:
    ENVIRONMENT.pop(name)  # what this process set must not leak into another project


def run(project: Path, *command: str, code: int = 0) -> str:
    """Run a command in a project; returns its output, both streams."""
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def flow(project: Path, *arguments: str, code: int = 0) -> str:
    return run(project, sys.executable, "-m", "flows.pipeline", *arguments, code=code)


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
