"""The report: one self-contained HTML file, the same bytes for the same results.

It contains no time, host, commit or run id; MLflow has those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headstart.evaluation import galleries, sections
from headstart.evaluation.comparisons import comparison_rows, result_rows
from headstart.evaluation.curves import training_curves
from headstart.evaluation.encoding import base64_text
from headstart.evaluation.galleries import Gallery
from headstart.models.trained import ModelCard
from headstart.targets import reports
from headstart.targets.reports.judged import SHOWN


@dataclass(frozen=True)
class Evaluation:
    """Everything that the report shows of a run, once the test images have answers.

    Args:
        results: as in metrics.json.
        gallery: the test images and the best model's answers for them.
        manifest: all rows of the manifest.
        by_class: these rows once for each of their classes.
        card: the fine-tuned model's card.
        look_alikes: see `look_alike_pairs`.
        source: the folder that the model learned from, as in params.yaml.
        params: every parameter of the run, see `flat_params`.
        digests: SHA-256, by name, of the files that the results depend on.
    """

    results: Mapping[str, Any]
    gallery: Gallery
    manifest: pd.DataFrame
    by_class: pd.DataFrame
    card: ModelCard
    look_alikes: pd.DataFrame
    source: str
    params: Mapping[str, str]
    digests: Mapping[str, str]


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template; every value is HTML-escaped."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(reports.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)


def pictures(found: Evaluation, folder: Path) -> dict[str, bytes]:
    """Draw the PNG files, by name: those of the kind of target, training, and the galleries as contact sheets.

    Args:
        folder: the folder of earlier stages' reports.
    """
    gallery, target = found.gallery, found.card.target
    stages = [stage for stage in ("train_head", "fine_tune") if (folder / stage / "history.csv").is_file()]
    curves = {stage: sections.training_curves(folder / stage, target.headline) for stage in stages}
    training = training_curves(curves, target.scores_in_words[target.headline])
    return gallery.report.pictures(gallery.judged) | {"training.png": training} | galleries.sheets(gallery)


def page(found: Evaluation, folder: Path, drawn: Mapping[str, bytes]) -> str:
    """Return the report as HTML.

    Args:
        folder: the folder of earlier stages' reports.
        drawn: the result of `pictures`.
    """
    gallery, results = found.gallery, found.results
    judged, report = gallery.judged, gallery.report
    copies = results["n_test_files"] - results["n_test"]
    searches = [
        sections.search_section(
            folder / "find_lr", "For the head, on cached activations" if gallery.images else "For the network"
        ),
        sections.search_section(folder / "fine_tune", "For the unfrozen network"),
    ]
    choice = folder / "fine_tune/bn_freeze.json"
    own = {name.removesuffix(".png"): base64_text(data) for name, data in drawn.items()}
    shown = {name: rows[:SHOWN] for name, rows in report.rankings(judged).items()}
    return render(
        report.template,
        {
            "source": found.source,
            "backbone": found.card.backbone if gallery.images else "columns alone",
            "image_size": found.card.preprocessing.image_size if found.card.preprocessing else 0,
            "what": "images" if gallery.images else "rows",
            "classes": judged.classes,
            "n_test": f"{results['n_test']:,}",
            "copies": f"{copies:,}" if copies else "",
            "kept": json.loads((folder / "fine_tune/kept.json").read_text())["sentence"],
            "results": result_rows(results),
            "comparisons": comparison_rows(results),
            "galleries": gallery.items(shown),
            "meanings": report.meanings,
            "by_class": gallery.items(report.grouped(judged)),
            "pictures": own,
            **report.context(judged, found.by_class),
            "searches": [search for search in searches if search],
            "columns": sections.columns_section(found.card.columns),
            "bn_freeze": json.loads(choice.read_text())["sentence"] if choice.is_file() else "",
            "data": sections.data_section(folder / "data"),
            "alike": galleries.look_alike_pictures(gallery.images, found.look_alikes, found.manifest) if gallery.images else [],
            "alike_total": len(found.look_alikes),
            "params": list(found.params.items()),
            "provenance": [
                *((f"SHA-256 of {name}", digest) for name, digest in found.digests.items()),
                ("backbone weights", found.card.provenance["weights"]),
            ],
        },
    )
