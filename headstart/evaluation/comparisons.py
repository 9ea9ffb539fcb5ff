"""The models of a run: their results, and comparisons in pairs.

With images these are the head and the fine-tuned network, on the base view and with TTA; with columns alone, the network and
gradient boosting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from headstart.targets.target import Answered

NAMES = {
    "head": "Frozen body, trained head",
    "head_tta": "Frozen body, trained head, TTA",
    "fine_tuned": "Fine-tuned",
    "fine_tuned_tta": "Fine-tuned, TTA",
    "boosting": "Gradient boosting, same columns",
    "network": "Network",
}
COMPARED = (
    ("boosting", "network"),
    ("head", "fine_tuned"),
    ("head", "head_tta"),
    ("fine_tuned", "fine_tuned_tta"),
    ("head_tta", "fine_tuned_tta"),
)


def result_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models' results in metrics.json as rows."""
    return [{"name": name, **metrics[key]} for key, name in NAMES.items() if key in metrics]


def compare_models(answered: Mapping[str, Answered], truth: torch.Tensor, seed: int) -> dict[str, dict[str, Any]]:
    """Compare the models' answers in pairs, for metrics.json."""
    found = {}
    for a, b in COMPARED:
        if a in answered and b in answered:
            one = answered[b].target.compare(answered[a], answered[b], truth, seed)
            found[f"{b} against {a}"] = asdict(one) | {"better": one.better()}
    return found


def comparison_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons in metrics.json as rows, with the models' names in words."""
    rows = []
    for a, b in COMPARED:
        found = metrics["comparisons"].get(f"{b} against {a}")
        if found is None:
            continue
        better = {"a": NAMES[a], "b": NAMES[b]}.get(found["better"], "undecided")
        rows.append({"a": NAMES[a], "b": NAMES[b], **found, "better": better})
    return rows
