"""The real server, worker and schedule: scheduled, overlapping, failing and killed runs of a small project."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.servers import free_port
from headstart.core.yaml_text import read_yaml
from tests.conftest import make_project, write_shapes
from tests.projects import CANARY, ENVIRONMENT, command_line, mlflow_runs
from tests.test_security import holding

pytestmark = pytest.mark.e2e
NIGHTLY, EVERY_MINUTE = "0 3 * * *", "* * * * *"
# The first time it hangs on `hang`, and fails as a network file system does on `fault`; both are files beside the project.
MEDDLING = """
import time as _time
from pathlib import Path as _Path
_original = train_head
def train_head(job):
    if _Path("fault").exists():
        _Path("fault").unlink()
        raise OSError(5, "Input/output error", "fault")
    if _Path("hang").exists():
        _Path("hang").unlink()
        _time.sleep(600)
    return _original(job)
"""


class Scheduled:
    """A project under `python -m flows.schedule`, and Prefect's API to ask of it."""

    def __init__(self, project: Path, port: int) -> None:
        self.project, self.port, self.api = project, port, f"http://127.0.0.1:{port}/api"

    def restart(self) -> None:
        """Start all, and wait until it is deployed and worked for."""
        environment = ENVIRONMENT | {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
        command = [sys.executable, "-m", "flows.schedule", "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=self.project, env=environment)
        deadline = time.monotonic() + 120
        while not any("worker" in command_line(process) for process in psutil.Process(self.process.pid).children()):
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str = "POST", **headers: str) -> Any:
        data = json.dumps(body if body is not None else {}).encode() if method != "GET" else None
        request = urllib.request.Request(
            f"{self.api}/{path}", data, {"content-type": "application/json", **headers}, method=method
        )
        for pause in (1, 3, 9, 0):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or not pause:  # busy: Prefect's client waits too
                    raise
                time.sleep(pause)
        raise AssertionError

    @property
    def deployment(self) -> dict[str, Any]:
        return self.ask("deployments/name/headstart/pipeline", method="GET")

    def start(self) -> str:
        return self.ask(f"deployments/{self.deployment['id']}/create_flow_run")["id"]

    def runs(self) -> dict[str, dict[str, Any]]:
        return {run["id"]: run for run in self.ask("flow_runs/filter")}

    def state(self, run: str) -> str:
        return str(self.runs()[run]["state"]["name"])

    def until(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.describe()
            assert self.process.poll() is None, self.describe()
            time.sleep(0.3)

    def describe(self) -> str:
        states = [(run["name"], run["state"]["name"], run["state"]["message"]) for run in self.runs().values()]
        logs = [path.read_text()[-2000:] for path in (self.project / ".headstart/logs").glob("*.log")]
        return f"{states}\n" + "\n".join(logs)

    def finished(self, run: str, seconds: float = 120) -> str:
        self.until(lambda: self.runs()[run]["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), seconds)
        return self.state(run)

    def artifacts(self, run: str) -> dict[str, Any]:
        found = self.ask("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {one["key"]: one["data"] for one in found}

    def tasks(self, run: str) -> dict[str, dict[str, Any]]:
        found = self.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {one["name"].rsplit("-", 1)[0]: one for one in found}

    def flow_process(self) -> int:
        """The process that runs a flow: the youngest below the worker, but for its guardian."""
        (worker,) = (p for p in psutil.Process(self.process.pid).children() if "worker" in command_line(p))

        def flows() -> list[psutil.Process]:
            return [p for p in worker.children(recursive=True) if not any("guardian.py" in word for word in command_line(p))]

        self.until(lambda: bool(flows()))
        return max(flows(), key=lambda p: p.create_time()).pid


@pytest.fixture(scope="module")
def prefect(tmp_path_factory) -> Iterator[Scheduled]:
    project = make_project(tmp_path_factory.mktemp("schedule") / "project")
    text = (project / "prefect.yaml").read_text()
    assert NIGHTLY in text and '"[10, 60]"' in text
    (project / "prefect.yaml").write_text(text.replace(NIGHTLY, EVERY_MINUTE).replace('"[10, 60]"', '"[1, 1]"'))
    stage = (project / "tasks/train_head.py").read_text()
    (project / "tasks/train_head.py").write_text(
        stage.replace('\n\nif __name__ == "__main__":', f'{MEDDLING}\n\nif __name__ == "__main__":')
    )
    started = Scheduled(project, free_port(4300))
    started.restart()
    try:
        assert started.deployment["schedules"]
        yield started
    finally:
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(60) == 0
        assert not [p for p in psutil.process_iter() if str(project) in _folder(p)], "a server or worker was left behind"


def _folder(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


def test_a_scheduled_run_completes_and_the_next_has_nothing_to_do(prefect):
    """Nobody starts it: the schedule does, within a minute."""

    def of_the_schedule(state: str) -> list[str]:
        return [run for run, what in prefect.runs().items() if what["auto_scheduled"] and what["state"]["name"] == state]

    prefect.until(lambda: bool(of_the_schedule("Completed")), 180)
    (run,) = of_the_schedule("Completed")
    artifacts = prefect.artifacts(run)
    assert json.loads(artifacts["summary"])[3]["model"] == "fine-tuned, TTA"
    assert [row["stage"] for row in json.loads(artifacts["stages"])][-1] == "evaluate"
    assert artifacts["learning-rate-curve"].startswith("data:image/png;base64,")
    assert artifacts["confusion-matrix"].startswith("data:image/png;base64,")
    (parent,) = [one for one in mlflow_runs(prefect.project) if one.data.tags.get("prefect.flow_run") == run]
    assert parent.info.run_id in artifacts["mlflow"]
    assert artifacts["precompute"] == artifacts["fine-tune"] == 100
    logs = [line["message"] for line in prefect.ask("logs/filter", {"limit": 200, "logs": {"flow_run_id": {"any_": [run]}}})]
    assert "find_lr: running" in logs, "our own lines are on the run's page"
    prefect.until(lambda: bool(of_the_schedule("Nothing to do")), 120)
    assert prefect.artifacts(of_the_schedule("Nothing to do")[0]).keys() == {"summary"}
    _pause(prefect)


def _pause(prefect: Scheduled) -> None:
    """The rest is started by hand, also once a restart has deployed prefect.yaml again."""
    path = prefect.project / "prefect.yaml"
    path.write_text(path.read_text().replace(EVERY_MINUTE, NIGHTLY))
    schedule = prefect.deployment["schedules"][0]
    prefect.ask(f"deployments/{prefect.deployment['id']}/schedules/{schedule['id']}", {"active": False}, "PATCH")
    prefect.until(
        lambda: all(run["state"]["type"] not in ("RUNNING", "PENDING", "SCHEDULED") for run in prefect.runs().values())
    )


def test_new_images_are_computed_and_no_others(prefect):
    write_shapes((prefect.project / "data/shapes").resolve(), each=24)
    run = prefect.start()
    assert prefect.finished(run) == "Completed"
    (parent,) = [one for one in mlflow_runs(prefect.project) if one.data.tags.get("prefect.flow_run") == run]
    rows, cached = parent.data.metrics["precompute_rows"], parent.data.metrics["precompute_cached_rows"]
    assert (rows, cached) == (2 * 72, 2 * 60)


def test_an_overlapping_run_is_cancelled(prefect):
    (prefect.project / "hang").touch()
    _retrain(prefect)
    first = prefect.start()
    prefect.until(lambda: prefect.state(first) == "Running")
    second = prefect.start()
    assert prefect.finished(second) == "Cancelled"
    prefect.until(lambda: not (prefect.project / "hang").exists())
    prefect.ask(f"flow_runs/{first}/set_state", {"state": {"type": "CANCELLING"}})
    assert prefect.finished(first) in ("Cancelled", "Crashed")


def _retrain(prefect: Scheduled) -> None:
    """Something that train_head depends on is other than before."""
    params = prefect.project / "params.yaml"
    seed = int(read_yaml(params)["seed"])
    params.write_text(params.read_text().replace(f"seed: {seed} ", f"seed: {seed + 1} ", 1))


def test_a_transient_fault_is_tried_again_and_bad_input_is_not(prefect):
    (prefect.project / "fault").touch()
    _retrain(prefect)
    run = prefect.start()
    assert prefect.finished(run) == "Completed"
    counts = {name: one["run_count"] for name, one in prefect.tasks(run).items()}
    assert counts["train_head"] == 2 and counts["fine_tune"] == 1
    bad = prefect.project / "data/shapes/a/alike.png"
    bad.write_bytes((prefect.project / "data/shapes/b/000.png").read_bytes())
    run = prefect.start()
    assert prefect.finished(run) == "Failed"
    assert prefect.tasks(run)["link_data"]["run_count"] == 1
    assert "the same bytes have two labels" in prefect.runs()[run]["state"]["message"]
    bad.unlink()


def test_a_killed_run_is_marked_and_the_next_one_goes_on(prefect):
    (prefect.project / "hang").touch()
    _retrain(prefect)
    run = prefect.start()
    prefect.until(lambda: not (prefect.project / "hang").exists() and prefect.state(run) == "Running")
    os.kill(prefect.flow_process(), signal.SIGKILL)
    assert prefect.finished(run) == "Crashed"
    again = prefect.start()
    assert prefect.finished(again) == "Completed"
    assert {one.info.status for one in mlflow_runs(prefect.project)} <= {"FINISHED", "KILLED"}


def test_a_stage_that_takes_too_long_fails(prefect):
    params = prefect.project / "params.yaml"
    whole = params.read_text()
    params.write_text(whole.replace("stage_timeout: 86400.0", "stage_timeout: 25.0"))
    (prefect.project / "hang").touch()
    _retrain(prefect)
    run = prefect.start()
    assert prefect.finished(run, 120) == "TimedOut"
    task = prefect.tasks(run)["train_head"]
    assert task["state"]["name"] == "TimedOut" and task["run_count"] == 1
    params.write_text(params.read_text().replace("stage_timeout: 25.0", "stage_timeout: 86400.0"))
    assert prefect.finished(prefect.start()) == "Completed"


def test_a_run_that_died_with_the_server_does_not_hold_the_schedule_up(prefect):
    """As when the machine goes down: its slot is free again, and it is marked."""
    (prefect.project / "hang").touch()
    _retrain(prefect)
    run = prefect.start()
    prefect.until(lambda: not (prefect.project / "hang").exists() and prefect.state(run) == "Running")
    down = psutil.Process(prefect.process.pid)
    for process in [*down.children(recursive=True), down]:
        process.kill()
    prefect.process.wait()
    prefect.restart()
    assert prefect.finished(run, 30) == "Crashed"
    assert prefect.finished(prefect.start()) == "Completed"


def test_a_secret_of_the_environment_is_nowhere(prefect):
    assert holding(prefect.project, CANARY.encode()) == []


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_other_sites_are_refused(prefect, headers):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        prefect.ask("flow_runs/filter", **headers)
