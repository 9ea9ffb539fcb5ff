"""The report's sections: files that earlier stages wrote to reports/, as values for the template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headstart.columns.encoders import Encoders
from headstart.core.files import read_checked_json
from headstart.core.params import Params
from headstart.evaluation.curves import TrainingCurves
from headstart.evaluation.encoding import base64_text
from headstart.manifest import SPLITS

NEAR_SHOWN = 20


def search_section(folder: Path, title: str) -> dict[str, Any] | None:
    """Return a learning-rate search's finding, each rule's suggestions and the picture; None if there was no search."""
    if not (folder / "lr.json").is_file():
        return None
    found = read_checked_json(folder / "lr.json")
    rules = [{"rule": rule, "lrs": ", ".join(f"{lr:.2g}" for lr in lrs) or "none"} for rule, lrs in found["by_rule"].items()]
    picture = base64_text((folder / "curve.png").read_bytes())
    sentence = f"{found['sentence'][:1].upper()}{found['sentence'][1:]}."
    return {
        "title": title,
        "sentence": sentence,
        "rules": rules,
        "picture": picture,
    }


def training_curves(folder: Path, score: str) -> TrainingCurves:
    """Read a stage's training curves from its history.csv and trace.csv; `score` is shown beside the loss."""
    history, trace = pd.read_csv(folder / "history.csv"), pd.read_csv(folder / "trace.csv")
    ends = trace["step"].max() / max(history["epoch"].max(), 1) * history["epoch"]
    loss = next(name for name in map(str, history) if name.startswith("valid_"))
    scores = history[[loss, f"valid_{score}"]]
    return TrainingCurves(trace.to_numpy(float), np.column_stack([ends, scores]))


def data_section(folder: Path) -> dict[str, Any]:
    """Read link_data's report: the counts as a sentence and rows, near copies, and pictures in base64."""
    found = json.loads((folder / "summary.json").read_text())
    copies = pd.read_csv(folder / "near_duplicates.csv", dtype=str, keep_default_na=False)
    unit = found["unit"]
    rows = [(unit, found[unit])]
    rows += [("quarantined", found["quarantined"]), ("ignored", found["ignored"])] if unit == "images" else []
    rows += [(f"ignored, named {kind}", number) for kind, number in found["ignored_by_extension"].items()]
    files = [("files in the folder", found["files"])] if unit == "images" else []
    notes = [(f"accepted with a warning: {kind}", number) for kind, number in found["warned"].items()]
    notes += [(f"normalised: {kind}", number) for kind, number in found["normalised"].items()]
    return {
        **found,
        "sentence": data_sentence(found),
        "rows": [(kind, f"{number:,}") for kind, number in (*rows, *files, *notes)],
        "near": copies.head(NEAR_SHOWN).to_dict("records"),
        "near_total": len(copies),
        "pictures": {
            name: base64_text((folder / f"{name}.png").read_bytes())
            for name in ("labels", "sizes", "samples")
            if (folder / f"{name}.png").is_file()
        },
    }


def columns_section(columns: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Return a row for each column that the model takes: its role, and what the training rows say of it."""
    if columns is None:
        return []
    encoders = Encoders.from_dict(columns["encoders"])
    unknown = dict(zip(encoders.categorical_names, columns["unknown"], strict=True))
    rows = []
    for name, codes in zip(encoders.categorical_names, encoders.cardinalities, strict=True):
        about = f"{codes - 2:,} categories; unknown in {100 * unknown[name]:.1f} % of the validation rows"
        rows.append({"name": name, "role": "category", "about": about})
    for name in encoders.continuous_names:
        scale = encoders.scales.get(name)
        about = f"median {scale.median:.4g}, mean {scale.mean:.4g}, deviation {scale.std:.4g}" if scale else "0 or 1"
        rows.append({"name": name, "role": "number", "about": about})
    return rows


def data_sentence(found: Mapping[str, Any]) -> str:
    """Say in words how many images are in each split, and how many are excluded."""
    parts = [f"{found['splits'][split]:,} {split}" for split in SPLITS]
    if found["unit"] == "rows":
        return f"{found['rows']:,} rows: {', '.join(parts)}; {found['exact_copies']:,} are equal to another in every cell."
    return (
        f"{found['images']:,} images: {', '.join(parts)}; {found['splits']['excluded']:,} excluded from training to avoid leaks"
        f" ({found['excluded_exact']:,} exact copies of validation or test images,"
        f" {found['splits']['excluded'] - found['excluded_exact'] - found['excluded_groups']:,} near copies,"
        f" {found['excluded_groups']:,} of a group in two splits); {found['exact_copies']:,} exact copies in all."
    )


def flat_params(params: Params) -> dict[str, str]:
    """Return every parameter that outputs depend on as `section.key`: not `runtime` (speed) or `promote` (a later step)."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = str(value)

    walk("", params.model_dump(exclude={"runtime", "promote"}))
    return flat
