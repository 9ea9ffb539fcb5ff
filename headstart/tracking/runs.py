"""The MLflow run of a trained stage: its parameters, its curves, and its final status."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException

from headstart.core.errors import is_shutdown
from headstart.core.files import write_json
from headstart.core.liveness import alive, forget
from headstart.tracking.store import ALIVE, KIND, close_dead_runs, full_disk_as_input_error, store, tracking_uri

MOST_METRICS = 1000  # MLflow's own limit for a batch


@dataclass(frozen=True)
class Run:
    """An open run; call it with a step and that step's metrics. `resumed`: an earlier process opened it."""

    client: MlflowClient
    experiment: str
    run_id: str
    resumed: bool

    @property
    def address(self) -> str:
        """The run's page, relative to the root of MLflow's UI."""
        return f"#/experiments/{self.experiment}/runs/{self.run_id}"

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        log_metrics(self.client, self.run_id, metrics, step)

    def curve(self, points: Iterable[Mapping[str, float]]) -> None:
        """Log all points of a curve, one per step, in batches (one by one they take 3 ms each)."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for step, point in enumerate(points) for key, value in point.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + MOST_METRICS])


@contextmanager
def stage_run(root: Path, stage: str, params: Mapping[str, Any], resume: Path | None = None) -> Iterator[Run]:
    """Open the child run of a trained stage for the block.

    The run ends as FINISHED, as KILLED on shutdown, or as FAILED. `record_pipeline` sets its parent later.
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=true adds the machine's load.

    Args:
        resume: the file that keeps the run's id until the stage is done, so that a stage that resumes from a checkpoint
            also resumes its run.
    """
    with open_run(root, name=stage, tags={"stage": stage}, resume=resume) as run:
        if not run.resumed:
            run.client.log_batch(run.run_id, params=[Param(key, str(value)) for key, value in params.items()])
        yield run
    write_json(child_path(root, stage), {"run_id": run.run_id})


@contextmanager
def open_run(
    root: Path, name: str, tags: Mapping[str, str], resume: Path | None = None, started: float | None = None
) -> Iterator[Run]:
    """Open a run for the block. It ends as FINISHED, as KILLED on shutdown, or as FAILED on an error.

    If the process dies, the next one that opens a run in this project marks the run KILLED.

    Args:
        started: the start, in seconds since the epoch, if the recorded work began earlier.

    Raises:
        InputError: the disk is full.
    """
    token = uuid.uuid4().hex
    with full_disk_as_input_error(root), ExitStack() as leaving:
        close_dead_runs(root)
        client, experiment = store(root)
        leaving.enter_context(alive(root, KIND, token, until_forgotten=True))
        run_id = _interrupted_run(client, resume, token)
        resumed = run_id is not None
        if run_id is None:
            since = None if started is None else int(started * 1000)
            made = client.create_run(experiment, start_time=since, run_name=name, tags={**tags, ALIVE: token})
            run_id = str(made.info.run_id)
        if resume is not None:
            write_json(resume, {"run_id": run_id})

        def end(kind: type[BaseException] | None, *_: object) -> None:
            client.set_terminated(run_id, "KILLED" if is_shutdown(kind) else "FAILED" if kind else "FINISHED")
            forget(root, KIND, token)

        leaving.push(end)
        if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            _watch_machine(leaving, root, run_id)
        yield Run(client, experiment, run_id, resumed)


def _watch_machine(leaving: ExitStack, root: Path, run_id: str) -> None:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri(root))
    monitor.start()
    leaving.callback(monitor.finish)


def _interrupted_run(client: MlflowClient, resume: Path | None, token: str) -> str | None:
    """Set the run of an interrupted training to RUNNING again and return its id; None if there is no such run."""
    try:
        run_id = str(json.loads(resume.read_text())["run_id"]) if resume else None
        if run_id is not None:
            client.set_tag(run_id, ALIVE, token)
            client.update_run(run_id, "RUNNING")
    except (OSError, ValueError, KeyError, MlflowException):
        return None
    return run_id


def log_metrics(client: MlflowClient, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log all metrics of one step in one call."""
    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(key, float(value), now, step) for key, value in metrics.items()])


def child_path(root: Path, stage: str) -> Path:
    """Return the file that keeps the id of a stage's last run until it gets a parent."""
    return root / ".headstart" / "children" / f"{stage}.json"
