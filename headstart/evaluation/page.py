"""The report: one self-contained HTML file, the same bytes for the same results.

It contains no time, host, commit or run id; MLflow has those. Shape legend: n test images, c classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from headstart.evaluation import galleries, metrics, plots, sections
from headstart.evaluation.comparisons import comparison_rows, result_rows
from headstart.evaluation.encoding import base64_text
from headstart.evaluation.galleries import TestPredictions
from headstart.models.trained import ModelCard


@dataclass(frozen=True)
class Evaluation:
    """Everything that the report shows of a run, once the test images are classified.

    Args:
        results: as in metrics.json.
        predictions: the test images and the best model's predictions for them.
        y_n: class indices of the test images.
        manifest: all rows of the manifest.
        card: the fine-tuned model's card.
        look_alikes: see `look_alike_pairs`.
        source: the folder that the model learned from, as in params.yaml.
        params: every parameter of the run, see `flat_params`.
        digests: SHA-256, by name, of the files that the results depend on.
    """

    results: Mapping[str, Any]
    predictions: TestPredictions
    y_n: torch.Tensor
    manifest: pd.DataFrame
    card: ModelCard
    look_alikes: pd.DataFrame
    source: str
    params: Mapping[str, str]
    digests: Mapping[str, str]

    def confusion(self) -> NDArray[np.int64]:
        """Return counts [c, c]: rows are the true classes, columns the predicted ones."""
        return metrics.confusion_matrix(self.y_n, self.predictions.p_nc.argmax(1), len(self.card.classes))


def render(context: Mapping[str, Any]) -> str:
    """Fill the template; every value is HTML-escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(context)


def pictures(found: Evaluation, reports: Path) -> dict[str, bytes]:
    """Draw the PNG files, by name: confusion matrix, calibration, training, and the galleries as contact sheets.

    Args:
        reports: the folder of earlier stages' reports.
    """
    curves = {stage: sections.training_curves(reports / stage) for stage in ("train_head", "fine_tune")}
    return {
        "confusion_matrix.png": plots.confusion(found.confusion(), found.card.classes),
        "calibration.png": plots.reliability_diagram(metrics.reliability(found.predictions.p_nc, found.y_n)),
        "training.png": plots.training_curves(curves),
        **galleries.sheets(found.predictions),
    }


def page(found: Evaluation, reports: Path, drawn: Mapping[str, bytes]) -> str:
    """Return the report as HTML.

    Args:
        reports: the folder of earlier stages' reports.
        drawn: the result of `pictures`.
    """
    counts, predictions, results = found.confusion(), found.predictions, found.results
    predicted_n, copies = predictions.p_nc.argmax(1), results["n_test_files"] - results["n_test"]
    searches = [
        sections.search_section(reports / "find_lr", "For the head, on cached activations"),
        sections.search_section(reports / "fine_tune", "For the unfrozen network"),
    ]
    choice = reports / "fine_tune/bn_freeze.json"
    rankings, by_class = galleries.rankings(predictions), galleries.by_class(predictions)
    return render(
        {
            "source": found.source,
            "backbone": found.card.backbone,
            "image_size": found.card.preprocessing.image_size,
            "classes": found.card.classes,
            "n_test": f"{results['n_test']:,}",
            "copies": f"{copies:,}" if copies else "",
            "kept": json.loads((reports / "fine_tune/kept.json").read_text())["sentence"],
            "results": result_rows(results),
            "comparisons": comparison_rows(results),
            "galleries": {name: [predictions.item(i) for i in rows[: galleries.SHOWN]] for name, rows in rankings.items()},
            "by_class": {name: [predictions.item(i) for i in rows] for name, rows in by_class.items()},
            "pictures": {name: base64_text(drawn[f"{name}.png"]) for name in ("confusion_matrix", "calibration", "training")},
            "confused": metrics.most_confused(counts, found.card.classes),
            "per_class": sections.class_rows(metrics.per_class(found.y_n, predicted_n, len(counts)), found.manifest),
            "searches": [search for search in searches if search],
            "bn_freeze": json.loads(choice.read_text())["sentence"] if choice.is_file() else "",
            "data": sections.data_section(reports / "data"),
            "alike": galleries.look_alike_pictures(predictions.images, found.look_alikes, found.manifest),
            "alike_total": len(found.look_alikes),
            "params": list(found.params.items()),
            "provenance": [
                *((f"SHA-256 of {name}", digest) for name, digest in found.digests.items()),
                ("backbone weights", found.card.provenance["weights"]),
            ],
        }
    )
