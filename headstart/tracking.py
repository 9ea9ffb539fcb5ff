"""MLflow records: a parent run per pipeline execution, a child per trained stage, the model. Nothing reads it back."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

from headstart.core.errors import told_to_stop
from headstart.core.files import remove, sha256_file, write_json
from headstart.core.params import Params
from headstart.core.stages import last_record

EXPERIMENT = "headstart"
METRICS = "reports/metrics.json"
ARTIFACTS = (
    "reports/report.html",
    "reports/predictions.parquet",
    METRICS,
    "reports/look_alikes.csv",
    "data/quarantine.csv",
    "reports/find_lr/curve.png",
    "reports/find_lr/curve.csv",
    "reports/find_lr/lr.json",
    "params.yaml",
)
MODEL_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
)
DIGEST_LENGTH = 36  # MLflow's own limit
QUIET = ("alembic", "mlflow")

MOST_METRICS = 1000  # MLflow's own limit of a batch
Summary = Mapping[str, str | int | float]


def store(root: Path) -> tuple[MlflowClient, str]:
    """The project's MLflow client and experiment id; the database is made on first use (2 to 5 s)."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    client = MlflowClient(tracking_uri(root))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return client, experiment.experiment_id
    tags = {"mlflow.experimentKind": "custom_model_development"}  # opens on the runs, not on the GenAI page
    return client, client.create_experiment(EXPERIMENT, artifact_location=(root / "mlartifacts").as_uri(), tags=tags)


def tracking_uri(root: Path) -> str:
    """The sqlite database inside the project."""
    return f"sqlite:///{root / 'mlflow.db'}"


def ui_command(root: Path, port: int) -> list[str]:
    """The command line that serves MLflow's UI for this project on loopback."""
    return [
        "mlflow", "ui", "--backend-store-uri", tracking_uri(root), "--default-artifact-root",
        (root / "mlartifacts").as_uri(), "--host", "127.0.0.1", "--port", str(port),
        "--allowed-hosts", f"127.0.0.1:{port},localhost:{port}",
        "--cors-allowed-origins", f"http://127.0.0.1:{port},http://localhost:{port}",
    ]  # fmt: skip


@dataclass(frozen=True)
class ChildRun:
    """A stage's run: call it with a step and its metrics as they come."""

    client: MlflowClient
    run_id: str

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        _log(self.client, self.run_id, metrics, step)

    def curve(self, points: Iterable[Mapping[str, float]]) -> None:
        """All points of a curve, a step each, sent together (3 ms each otherwise)."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for step, point in enumerate(points) for key, value in point.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + MOST_METRICS])


@contextmanager
def stage_run(root: Path, stage: str, params: Mapping[str, Any], resume: Path | None = None) -> Iterator[ChildRun]:
    """A child run of a trained stage.

    The run is FINISHED, KILLED when the process is told to stop, or FAILED. Its parent is named once the
    pipeline's run is made (`record_pipeline`).

    Args:
        resume: where the run's id is kept until the stage is done: a stage that goes on from a checkpoint goes on
            with its run.
    """
    client, experiment = store(root)
    run_id = _interrupted_run(client, resume)
    if run_id is None:
        run_id = str(client.create_run(experiment, run_name=stage, tags={"stage": stage}).info.run_id)
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    if resume is not None:
        write_json(resume, {"run_id": run_id})

    def end(kind: type[BaseException] | None, *_: object) -> None:
        client.set_terminated(run_id, "KILLED" if told_to_stop(kind) else "FAILED" if kind else "FINISHED")

    with ExitStack() as leaving:
        leaving.push(end)
        yield ChildRun(client, run_id)
    write_json(_child_path(root, stage), {"run_id": run_id})


def _interrupted_run(client: MlflowClient, resume: Path | None) -> str | None:
    """The run that an interrupted training logged to, set running again; None where there is none any more."""
    try:
        run_id = str(json.loads(resume.read_text())["run_id"]) if resume else None
        if run_id is not None:
            client.update_run(run_id, "RUNNING")
    except (OSError, ValueError, KeyError, MlflowException):
        return None
    return run_id


def _log(client: MlflowClient, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(key, float(value), now, step) for key, value in metrics.items()])


def _child_path(root: Path, stage: str) -> Path:
    return root / ".headstart" / "children" / f"{stage}.json"


def record_pipeline(
    root: Path, params: Params, summaries: Mapping[str, Summary] | None = None, tags: Mapping[str, str] | None = None
) -> str:
    """Make the parent run of one pipeline execution from what lies in the project, and adopt its children.

    Args:
        root: the project.
        params: all of them are logged.
        summaries: what the stages that ran said of themselves; numbers become metrics.
        tags: further tags, such as the flow run's id.

    Returns:
        The parent's run id.
    """
    client, experiment = store(root)
    results = json.loads((root / METRICS).read_text())
    computed = last_record(root, "precompute")  # how activations were computed matters to every run that uses them
    summaries = ({"precompute": computed.summary} if computed else {}) | dict(summaries or {})
    found = json.loads((root / "reports/find_lr/lr.json").read_text())
    run = client.create_run(experiment, run_name=f"{Path(params.data.source).name}-{params.backbone.name}")
    run_id = str(run.info.run_id)
    status = "FAILED"
    try:
        for key, value in (_provenance(root) | _words(summaries) | dict(tags or {})).items():
            client.set_tag(run_id, key, value)
        client.log_batch(run_id, params=[Param(key, value) for key, value in _flat(params.model_dump()).items()])
        numbers = _numbers(results) | {"suggested_lr": found["lr"]}
        for stage, summary in summaries.items():
            numbers |= {f"{stage}_{key}": value for key, value in _numbers(summary).items()}
        _log(client, run_id, numbers)
        client.log_inputs(run_id, [_data_set(root, params)])
        for artifact in ARTIFACTS:
            client.log_artifact(run_id, str(root / artifact), "" if artifact == "params.yaml" else "reports")
        for folder in ("data", "pictures", "fine_tune"):
            client.log_artifacts(run_id, str(root / "reports" / folder), f"reports/{folder}")
        _adopt(client, root, run_id)
        _log_model(root, run_id, _example_image(root, params))
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return run_id


def _data_set(root: Path, params: Params) -> DatasetInput:
    """The data as MLflow's data-set input: its digest is the manifest's, so that runs on the same images compare."""
    found = json.loads((root / "reports/data/summary.json").read_text())
    kept = {name: found[name] for name in ("images", "classes", "splits", "exact_copies", "quarantined")}
    data = Dataset(
        name=Path(params.data.source).name,
        digest=sha256_file(root / "data/manifest.parquet")[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": params.data.source}),
        profile=json.dumps(kept),
    )
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers as `head_accuracy`, `fine_tuned_tta_log_loss`, …"""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{key}_")
        elif isinstance(value, int | float):
            flat[prefix + key] = float(value)
    return flat


def _words(summaries: Mapping[str, Summary]) -> dict[str, str]:
    """What stages said in words, as `precompute.engine`, …"""
    return {f"{stage}.{key}": text for stage, said in summaries.items() for key, text in said.items() if isinstance(text, str)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: str(value)}
    return flat


def _provenance(root: Path) -> dict[str, str]:
    tags = {"data_digest": sha256_file(root / "data/manifest.parquet")}
    lock = root / "dvc.lock"
    if lock.is_file():
        tags["dvc_lock"] = sha256_file(lock)
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if git.returncode == 0:
        tags["mlflow.source.git.commit"] = git.stdout.strip()
    return tags


def _adopt(client: MlflowClient, root: Path, run_id: str) -> None:
    for path in sorted((root / ".headstart" / "children").glob("*.json")):
        client.set_tag(json.loads(path.read_text())["run_id"], "mlflow.parentRunId", run_id)
        remove(path)


def _example_image(root: Path, params: Params) -> bytes:
    predictions = pd.read_parquet(root / "reports/predictions.parquet", columns=["path"])
    return (root / params.data.source / predictions["path"].iloc[0]).read_bytes()


def _log_model(root: Path, run_id: str, example: bytes) -> None:
    mlflow.set_tracking_uri(tracking_uri(root))
    inputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.binary, "image")]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "predicted"),
        ColSpec(DataType.double, "confidence"),
        ColSpec(Array(DataType.double), "probabilities"),
    ]
    package = Path(__file__).parent
    with mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "serving.py"),
            artifacts={"model": str(root / "models/fine_tuned.safetensors")},
            code_paths=[str(package)],
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            input_example=pd.DataFrame({"image": [example, example]}),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in MODEL_REQUIREMENTS],
            metadata={"sha256": sha256_file(root / "models/fine_tuned.safetensors")},
        )


class ImageClassifier(PythonModel):
    """A fine-tuned model behind MLflow's table interface: a column `image` of file bytes, never paths or URLs."""

    def load_context(self, context: Any) -> None:
        from headstart.evaluation.predictor import Predictor

        self.predictor = Predictor(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row per image: predicted label, its probability, and the probabilities of all classes."""
        probabilities = self.predictor.probabilities(list(model_input["image"]))
        best = probabilities.argmax(1).tolist() if len(probabilities) else []
        rows = probabilities.double().tolist()
        return pd.DataFrame(
            {
                "predicted": [self.predictor.card.classes[i] for i in best],
                "confidence": [row[i] for row, i in zip(rows, best, strict=True)],
                "probabilities": rows,
            }
        )


def declare_model() -> None:
    """Tell MLflow which model the running code is (called by headstart/serving.py only)."""
    mlflow.models.set_model(ImageClassifier())
