"""The four models of a run (head and fine-tuned network, base view and TTA): their results, and comparisons in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from headstart.statistics import compare

NAMES = {
    "head": "Frozen body, trained head",
    "head_tta": "Frozen body, trained head, TTA",
    "fine_tuned": "Fine-tuned",
    "fine_tuned_tta": "Fine-tuned, TTA",
}
COMPARED = (("head", "fine_tuned"), ("head", "head_tta"), ("fine_tuned", "fine_tuned_tta"), ("head_tta", "fine_tuned_tta"))


def result_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the four models' results in metrics.json as rows."""
    return [{"name": name, **metrics[key]} for key, name in NAMES.items()]


def compare_models(p: Mapping[str, torch.Tensor], y_n: torch.Tensor, seed: int) -> dict[str, dict[str, Any]]:
    """Compare the four models' probabilities [n, c] in pairs, for metrics.json."""
    return {
        f"{b} against {a}": asdict(found := compare(p[a], p[b], y_n, seed)) | {"better": found.better()} for a, b in COMPARED
    }


def comparison_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons in metrics.json as rows, with the models' names in words."""
    rows = []
    for a, b in COMPARED:
        found = metrics["comparisons"][f"{b} against {a}"]
        better = {"a": NAMES[a], "b": NAMES[b]}.get(found["better"], "undecided")
        rows.append({"a": NAMES[a], "b": NAMES[b], **found, "better": better})
    return rows
