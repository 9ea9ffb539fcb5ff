"""The MLflow run of one pipeline execution, made from the project's files, whichever process computed them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param

from headstart.columns.encoders import Encoders
from headstart.columns.values import numbers
from headstart.core.code_digest import CODE_AT_START, digest
from headstart.core.files import read_checked_json, remove, sha256_file
from headstart.core.graph import load_graph
from headstart.core.params import Params
from headstart.core.stages import Summary, last_record
from headstart.manifest import read_manifest
from headstart.models.trained import load_card
from headstart.tracking import pending
from headstart.tracking.model import log_model
from headstart.tracking.runs import Run, child_path, log_metrics, open_run
from headstart.tracking.store import store

METRICS = "reports/metrics.json"
ARTIFACTS = (
    "reports/report.html",
    "reports/predictions.parquet",
    METRICS,
    "reports/look_alikes.csv",
    "data/quarantine.csv",
    "data/manifest.parquet",
    "reports/find_lr/curve.png",
    "reports/find_lr/curve.csv",
    "reports/find_lr/lr.json",
    "params.yaml",
)
DIGEST_LENGTH = 36  # MLflow's own limit


def record_pipeline(root: Path, params: Params, tags: Mapping[str, str] | None = None, started: float | None = None) -> Run:
    """Record one pipeline execution as a parent run, from the project's files, and set it as the parent of its stages' runs.

    The run gets all parameters and all metrics, even of stages that did not run now, so that parent runs can be compared.

    Args:
        root: the project.
        params: logged completely.
        tags: further tags, such as the flow run's id.
        started: start of the execution, in seconds since the epoch; by default the start of its first trained stage.

    Returns:
        The parent run.
    """
    results = json.loads((root / METRICS).read_text())
    del results["comparisons"]  # tests between two models, not metrics to compare runs by; the report has them
    found = read_checked_json(root / "reports/find_lr/lr.json")
    summaries = _summaries(root, params)
    provenance = _provenance(root)
    # The lock's digest stands for the result; it comes early because lists cut long names.
    name = f"{Path(params.data.source).name}-{provenance['dvc_lock'][:6]}-{params.backbone.name}"
    with open_run(root, name, dict(tags or {}), started=began(root) if started is None else started) as run:
        for key, value in (provenance | _words(summaries)).items():
            run.client.set_tag(run.run_id, key, value)
        run.client.log_batch(run.run_id, params=[Param(key, value) for key, value in _flat(params.model_dump()).items()])
        figures = _numbers(results) | {"suggested_lr": found["lr"]}
        for stage, summary in summaries.items():
            figures |= {f"{stage}_{key}": value for key, value in _numbers(summary).items()}
        log_metrics(run.client, run.run_id, figures)
        run.client.log_inputs(run.run_id, [_data_set(root, params)])
        for artifact in ARTIFACTS:
            run.client.log_artifact(run.run_id, str(root / artifact), "" if artifact == "params.yaml" else "reports")
        for folder in ("data", "pictures", "fine_tune"):
            run.client.log_artifacts(run.run_id, str(root / "reports" / folder), f"reports/{folder}")
        log_model(run.run_id, root / "models/fine_tuned.safetensors", _example(root, params))
        _adopt(run.client, root, run.run_id)
    pending.note(root, "register")
    pending.settle(root, "record")
    return run


def began(root: Path) -> float:
    """Return when the first stage without a parent run began, or evaluate if there is none; seconds since the epoch."""
    client, _ = store(root)
    children = [json.loads(path.read_text())["run_id"] for path in child_path(root, "any").parent.glob("*.json")]
    starts = [client.get_run(run_id).info.start_time / 1000 for run_id in children]
    record = root / ".headstart/records/evaluate.json"
    seconds = float(json.loads(record.read_text())["seconds"]) if record.is_file() else 0.0
    return min([time.time() - seconds, *starts])


def _summaries(root: Path, params: Params) -> dict[str, Summary]:
    """Return the summary that each stage recorded when it wrote its current outputs."""
    records = {name: last_record(root, stage) for name, stage in load_graph(root, params).items()}
    return {name: record.summary for name, record in records.items() if record}


def _data_set(root: Path, params: Params) -> DatasetInput:
    """Return the data as MLflow's dataset input, with the manifest's digest: runs on the same images can be compared."""
    found = json.loads((root / "reports/data/summary.json").read_text())
    kept = {name: found[name] for name in (found["unit"], "classes", "splits", "exact_copies", "quarantined")}
    data = Dataset(
        name=Path(params.data.source).name,
        digest=sha256_file(root / "data/manifest.parquet")[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": params.data.source}),
        profile=json.dumps(kept),
    )
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten nested numbers to `head_accuracy`, `fine_tuned_tta_log_loss`, …"""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{key}_")
        elif isinstance(value, int | float):
            flat[prefix + key] = float(value)
    return flat


def _words(summaries: Mapping[str, Summary]) -> dict[str, str]:
    """Collect the texts in the stages' summaries as `precompute.engine`, …"""
    return {f"{stage}.{key}": text for stage, said in summaries.items() for key, text in said.items() if isinstance(text, str)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: str(value)}
    return flat


def _provenance(root: Path) -> dict[str, str]:
    tags = {
        "data_digest": sha256_file(root / "data/manifest.parquet"),
        "code_digest": digest(CODE_AT_START),
    }
    lock = root / "dvc.lock"
    tags["dvc_lock"] = sha256_file(lock) if lock.is_file() else "none"
    commit = _git_commit(root)
    if commit is not None:
        tags |= {"mlflow.source.git.commit": commit, "mlflow.source.name": "headstart"}  # MLflow's UI shows them together
    return tags


def _git_commit(root: Path) -> str | None:
    """Return the checked-out commit; None without git, or outside a repository."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # git is missing, or cannot be run
        return None
    return git.stdout.strip() if git.returncode == 0 else None


def _adopt(client: MlflowClient, root: Path, run_id: str) -> None:
    for path in sorted(child_path(root, "any").parent.glob("*.json")):
        client.set_tag(json.loads(path.read_text())["run_id"], "mlflow.parentRunId", run_id)
        remove(path)


def _example(root: Path, params: Params) -> pd.DataFrame:
    """Return two test images or rows as the served model takes them: bytes in a column `image`, and the table's columns."""
    manifest = read_manifest(root / "data/manifest.parquet")
    test = manifest[manifest["split"] == "test"].head(1)
    card = load_card(root / "models/fine_tuned.safetensors")
    example = pd.DataFrame(index=test.index)
    if card.preprocessing is not None:
        example["image"] = [(root / params.data.source / path).read_bytes() for path in test["path"]]
    if card.columns is not None:
        roles = Encoders.from_dict(card.columns["encoders"]).roles
        for name in roles.names:
            is_number = name in roles.continuous
            example[name] = numbers(test[name]) if is_number else test[name].astype("str").astype(object)
    return pd.concat([example, example], ignore_index=True)
