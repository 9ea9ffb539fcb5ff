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
from headstart.targets.tables import METRICS, PICTURE
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
}
MODELS = {
    "head": "frozen head",
    "head_tta": "frozen head, TTA",
    "fine_tuned": "fine-tuned",
    "fine_tuned_tta": "fine-tuned, TTA",
    "boosting": "gradient boosting",
    "network": "network",
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
    shown = _picture(root) if name == "evaluate" else PICTURES.get(name)
    if shown:
        key, path, description = shown
        picture = base64.b64encode((root / path).read_bytes()).decode()
        create_image_artifact(f"data:image/png;base64,{picture}", key=key, description=description)


def _picture(root: Path) -> tuple[str, str, str]:
    """Return key, path and description of the picture that best shows the test results."""
    name, description = PICTURE[_kind(root)]
    return name.removesuffix(".png").replace("_", "-"), f"reports/pictures/{name}", description


def _kind(root: Path) -> str:
    return str(json.loads((root / "data/target.json").read_text())["kind"])


def run_summary(root: Path, rows: Sequence[dict[str, Any]], mlflow_run: str | None, verdict: str | None) -> None:
    """Show the outcome of each stage and, if anything ran, the test results and a link to the run in MLflow.

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
        create_table_artifact(test_results(root), key="summary", description="results on the test split")
        page = os.environ.get(MLFLOW_URL, "http://127.0.0.1:5000").rstrip("/")
        create_link_artifact(f"{page}/{mlflow_run}", key="mlflow", link_text="this run in MLflow (make ui)")


def test_results(root: Path) -> list[dict[str, str]]:
    """Return a row for each model of reports/metrics.json, with the metrics that summaries show."""
    results, words = json.loads((root / "reports/metrics.json").read_text()), METRICS[_kind(root)]
    rows = []
    for key, name in MODELS.items():
        if key in results:
            found = results[key]
            rows.append({"model": name} | {text: f"{found[metric]:.4f}" for metric, text in words.items() if metric in found})
            if "accuracy_low" in found:
                rows[-1]["95 % interval"] = f"{found['accuracy_low']:.4f} to {found['accuracy_high']:.4f}"
    return rows
