"""Show a run on Prefect's pages, as artifacts: the progress of each stage, results, and a link to MLflow."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.core.progress import observed
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

PICTURES = {
    "find_lr": ("learning-rate-curve", "reports/find_lr/curve.png", "the learning-rate range test of the head"),
    "evaluate": ("confusion-matrix", "reports/pictures/confusion_matrix.png", "the confusion matrix of the test images"),
}
MODELS = {
    "head": "frozen head",
    "head_tta": "frozen head, TTA",
    "fine_tuned": "fine-tuned",
    "fine_tuned_tta": "fine-tuned, TTA",
}
MLFLOW_URL = "HEADSTART_MLFLOW_URL"  # address of the team's MLflow; the default is where `make ui` serves it


@contextmanager
def stage(root: Path, name: str) -> Iterator[None]:
    """Show a progress bar while a stage runs, and then the picture that best shows its result."""
    bar: Any = create_progress_artifact(0.0, key=name.replace("_", "-"), description=f"{name}: started")

    def move(what: str, done: int, total: int) -> None:
        update_progress_artifact(bar, 100.0 * done / max(total, 1), description=f"{name}: {what}, {done:,} of {total:,}")

    with observed(move):
        yield
    update_progress_artifact(bar, 100.0, description=f"{name}: done")
    if name in PICTURES:
        key, path, description = PICTURES[name]
        picture = base64.b64encode((root / path).read_bytes()).decode()
        create_image_artifact(f"data:image/png;base64,{picture}", key=key, description=description)


def run_summary(root: Path, rows: Sequence[dict[str, Any]], mlflow_run: str | None, verdict: str | None) -> None:
    """Show the outcome of each stage and, if anything ran, the accuracies and a link to the run in MLflow.

    Args:
        rows: the rows of the table of stages.
        mlflow_run: where MLflow's pages show the run, relative to their root; None if nothing ran.
        verdict: the decision about the model.
    """
    if mlflow_run is None and verdict is None:
        create_markdown_artifact("Nothing to do: images, parameters and code are as before.", key="summary")
    if verdict is not None:
        create_markdown_artifact(f"Model: {verdict}", key="champion")
    if mlflow_run is not None:
        create_table_artifact(list(rows), key="stages", description="outcome of each stage")
        create_table_artifact(accuracies(root), key="summary", description="accuracy on the test images")
        page = os.environ.get(MLFLOW_URL, "http://127.0.0.1:5000").rstrip("/")
        create_link_artifact(f"{page}/{mlflow_run}", key="mlflow", link_text="this run in MLflow (make ui)")


def accuracies(root: Path) -> list[dict[str, str]]:
    """Return a row for each model of reports/metrics.json: its accuracy, the interval, its log-loss."""
    results = json.loads((root / "reports/metrics.json").read_text())
    return [
        {
            "model": name,
            "accuracy": f"{results[key]['accuracy']:.4f}",
            "95 % interval": f"{results[key]['accuracy_low']:.4f} to {results[key]['accuracy_high']:.4f}",
            "log-loss": f"{results[key]['log_loss']:.4f}",
        }
        for key, name in MODELS.items()
    ]
