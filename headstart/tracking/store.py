"""The project's MLflow store: a database and an artifact folder inside the project."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from headstart.core.files import no_space
from headstart.core.liveness import dead, forget

logger = logging.getLogger("headstart")
EXPERIMENT = "headstart"
ALIVE = "headstart.alive"  # a run's tag: the name of its process's lock (core/liveness.py)
KIND = "mlflow"
DISK_FULL = "database or disk is full"  # SQLite's message
ELSEWHERE = os.environ.get("MLFLOW_TRACKING_URI")  # read at import, because MLflow later writes our own address there
QUIET = ("alembic", "mlflow")


def store(root: Path) -> tuple[MlflowClient, str]:
    """Return the project's MLflow client and experiment id; the first call creates the database (2 to 5 s)."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # Headstart reports the errors
    mlflow.set_tracking_uri(tracking_uri(root))  # some of MLflow's own code reads it instead of its client's address
    mlflow.set_registry_uri(tracking_uri(root))
    _say_where(root)
    client = MlflowClient(tracking_uri(root), registry_uri=tracking_uri(root))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return client, experiment.experiment_id
    tags = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens the runs, not the GenAI page
    return client, client.create_experiment(EXPERIMENT, artifact_location=(root / "mlartifacts").as_uri(), tags=tags)


@functools.cache
def _say_where(root: Path) -> None:
    """Warn once per process that an MLFLOW_TRACKING_URI in the environment is not used."""
    if ELSEWHERE and tracking_uri(root) != ELSEWHERE:
        parts = urlsplit(ELSEWHERE)  # shown without a password that it may contain
        shown = f"{parts.scheme}://{parts.hostname}" if parts.hostname else "set"
        logger.warning("MLFLOW_TRACKING_URI (%s) is not used yet: runs and models are stored in %s", shown, root / "mlflow.db")


@contextmanager
def full_disk_as_input_error(root: Path) -> Iterator[None]:
    """Turn MLflow's error for a full disk into an `InputError`.

    Raises:
        InputError: the disk is full.
    """
    try:
        yield
    except MlflowException as error:
        if DISK_FULL in str(error):
            raise no_space(root / "mlflow.db") from None
        raise


def tracking_uri(root: Path) -> str:
    """Return the address of the SQLite database inside the project."""
    return f"sqlite:///{root / 'mlflow.db'}"


def ui_command(root: Path, port: int) -> list[str]:
    """Return the command line that serves MLflow's UI for this project on loopback."""
    return [
        "mlflow", "ui", "--backend-store-uri", tracking_uri(root), "--default-artifact-root",
        (root / "mlartifacts").as_uri(), "--host", "127.0.0.1", "--port", str(port),
        "--allowed-hosts", f"127.0.0.1:{port},localhost:{port}",
        "--cors-allowed-origins", f"http://127.0.0.1:{port},http://localhost:{port}",
    ]  # fmt: skip


def close_dead_runs(root: Path) -> list[str]:
    """Mark runs as KILLED that dead processes left RUNNING, and return their ids."""
    tokens = dead(root, KIND)
    if not tokens:
        return []
    client, experiment = store(root)
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=1000)
    closed = [run.info.run_id for run in running if run.data.tags.get(ALIVE) in tokens]
    for run_id in closed:
        client.set_terminated(run_id, "KILLED")
    for token in tokens:
        forget(root, KIND, token)
    return closed
