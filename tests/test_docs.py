"""The commands of docs/operations.md work as they stand, in order, in a small project."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.servers import SECONDS_TO_END, answers, free_port
from tests import templates
from tests.conftest import REPOSITORY
from tests.projects import ENVIRONMENT, how

pytestmark = pytest.mark.e2e
PORTS = {"4200": 4700, "4210": 4710, "5001": 5300, "5000": 5310}  # those of the text, and where to look for a free one
BLOCK = re.compile(r"^```sh( serve)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS = 120


@pytest.fixture(scope="module")
def project(done, tmp_path_factory) -> Path:
    """Finished, under git, with two versions in the registry."""
    project = templates.copy_project(done, tmp_path_factory.mktemp("docs") / "project")
    how(project, "fine_tune.lr=2e-3")
    for command in (("add", "-A"), ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "ran")):
        subprocess.run(["git", *command], cwd=project, check=True)
    return project


@pytest.fixture(scope="module")
def shell(project) -> Iterator[dict[str, str]]:
    names = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}
    yield ENVIRONMENT | names | {"PWD": str(project)}


def test_every_command(project, shell):
    text = (REPOSITORY / "docs/operations.md").read_text()
    ports = {number: str(free_port(start)) for number, start in PORTS.items()}
    blocks = BLOCK.findall(text)
    assert len(blocks) >= 12 and sum(bool(serve) for serve, _ in blocks) == 4
    running: list[tuple[subprocess.Popen[bytes], int]] = []
    try:
        for serve, script in blocks:
            for number, other in ports.items():
                script = script.replace(number, other)
            if "flows.ui" in script:
                script = script.replace("flows.ui", f"flows.ui --mlflow-port {ports['5000']} --prefect-port {free_port(4720)}")
            if "flows.schedule" in script:
                script = script.replace("flows.schedule", f"flows.schedule --port {ports['4200']}")
            if serve:
                process = subprocess.Popen(["bash", "-ec", script], cwd=project, env=shell, start_new_session=True)
                # the plain worker does not end once its server has; ours end their servers, each in its time
                running.append((process, 20 if "worker start" in script else 3 * SECONDS_TO_END))
                until_served(script, project, shell, ports)
                continue
            done = subprocess.run(["bash", "-ec", script], cwd=project, env=shell, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    finally:
        for process, _ in reversed(running):
            os.killpg(process.pid, signal.SIGTERM)
        for process, seconds in running:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    for name in ("predictions.parquet", "predictions.csv", "model.pt2", "mlflow-backup.db", "mlartifacts-backup.tgz"):
        assert (project / name).stat().st_size > 100, name


def until_served(script: str, project: Path, shell: dict[str, str], ports: dict[str, str]) -> None:
    """Wait for what a block starts: the port it serves, and where it deploys, the deployment."""
    port = next((port for number, port in ports.items() if port in script), ports["5000"])
    deadline = time.monotonic() + SECONDS
    while not answers(int(port)):
        assert time.monotonic() < deadline, script
        time.sleep(0.3)
    if "deploy" not in script and "schedule" not in script:
        return
    asked = ["prefect", "deployment", "inspect", "predict/predict"]
    address = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(project / ".headstart/prefect")}
    while subprocess.run(asked, env=shell | address, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, script
        time.sleep(0.5)


def test_every_target_of_make_is_told_by_help():
    said = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)) - {"export"}
    assert {line.split()[1] for line in said.splitlines()} == targets, said


def test_links_lead_somewhere():
    for page in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
