"""The report: one self-contained HTML file, the same bytes for the same run.

No time, host, commit or run id is in it; those are MLflow's.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from headstart.core.files import read_checked_json
from headstart.core.params import Params
from headstart.evaluation.plots import Course
from headstart.manifest import SPLITS
from headstart.statistics import compare

NEAR_SHOWN = 20


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


def base64_text(data: bytes) -> str:
    """Base64 of `data` for a data: address."""
    return base64.b64encode(data).decode()


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


NAMES = {
    "head": "Frozen body, trained head",
    "head_tta": "Frozen body, trained head, TTA",
    "fine_tuned": "Fine-tuned",
    "fine_tuned_tta": "Fine-tuned, TTA",
}
COMPARED = (("head", "fine_tuned"), ("head", "head_tta"), ("fine_tuned", "fine_tuned_tta"), ("head_tta", "fine_tuned_tta"))


def result_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """metrics.json as rows."""
    return [{"name": name, **metrics[key]} for key, name in NAMES.items()]


def compare_models(p: Mapping[str, torch.Tensor], y_n: torch.Tensor, seed: int) -> dict[str, dict[str, Any]]:
    """Paired comparisons of the four models' probabilities [n, c], for metrics.json."""
    return {
        f"{b} against {a}": asdict(found := compare(p[a], p[b], y_n, seed)) | {"better": found.better()} for a, b in COMPARED
    }


def comparison_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparisons, in words and numbers."""
    rows = []
    for a, b in COMPARED:
        found = metrics["comparisons"][f"{b} against {a}"]
        better = {"a": NAMES[a], "b": NAMES[b]}.get(found["better"], "undecided")
        rows.append({"a": NAMES[a], "b": NAMES[b], **found, "better": better})
    return rows


def class_rows(measured: Sequence[Mapping[str, float]], manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """Per-class metrics with the number of images in each split; copies count once."""
    counts = manifest.drop_duplicates(["split", "key"]).groupby(["class_index", "split"]).size()
    names = manifest.groupby("class_index")["label"].first()
    return [
        {"name": names[i], **row, **{split: int(counts.get((i, split), 0)) for split in SPLITS}}
        for i, row in enumerate(measured)
    ]


def lr_sentence(found: Mapping[str, Any]) -> str:
    """What the learning-rate search found, in words."""
    if found["abstained"]:
        return f"No suggestion: {found['abstained']}; the default {found['lr']:.2g} is used."
    return f"Suggested learning rate {found['lr']:.2g}; all rules and seeds lie within a factor of {found['spread']:.3g}."


def search_section(folder: Path, title: str) -> dict[str, Any] | None:
    """A learning-rate search: its finding, each rule's suggestions, the picture; None where there was none."""
    if not (folder / "lr.json").is_file():
        return None
    found = read_checked_json(folder / "lr.json")
    rules = [{"rule": rule, "lrs": ", ".join(f"{lr:.2g}" for lr in lrs) or "none"} for rule, lrs in found["by_rule"].items()]
    picture = base64_text((folder / "curve.png").read_bytes())
    return {"title": title, "sentence": lr_sentence(found), "rules": rules, "picture": picture}


def course(folder: Path) -> Course:
    """How a stage trained, from its history.csv and trace.csv."""
    history, trace = pd.read_csv(folder / "history.csv"), pd.read_csv(folder / "trace.csv")
    ends = trace["step"].max() / max(history["epoch"].max(), 1) * history["epoch"]
    scores = history[["valid_log_loss", "valid_accuracy"]]
    return Course(trace.to_numpy(float), np.column_stack([ends, scores]))


def data_section(folder: Path) -> dict[str, Any]:
    """What link_data said of the data: its counts as sentences and rows, near copies, pictures in base64."""
    found = json.loads((folder / "summary.json").read_text())
    copies = pd.read_csv(folder / "near_duplicates.csv", dtype=str, keep_default_na=False)
    rows = [("images", found["images"]), ("quarantined", found["quarantined"]), ("ignored", found["ignored"])]
    rows += [(f"ignored, being named {kind}", number) for kind, number in found["ignored_by_extension"].items()]
    notes = [(f"accepted with a warning: {kind}", number) for kind, number in found["warned"].items()]
    notes += [(f"normalised: {kind}", number) for kind, number in found["normalised"].items()]
    return {
        **found,
        "sentence": data_sentence(found),
        "rows": [(kind, f"{number:,}") for kind, number in (*rows, ("files in the folder", found["files"]), *notes)],
        "near": copies.head(NEAR_SHOWN).to_dict("records"),
        "near_total": len(copies),
        "pictures": {name: base64_text((folder / f"{name}.png").read_bytes()) for name in ("classes", "sizes", "samples")},
    }


def data_sentence(found: Mapping[str, Any]) -> str:
    """How many images are where, in words."""
    parts = [f"{found['splits'][split]:,} {split}" for split in SPLITS]
    return (
        f"{found['images']:,} images: {', '.join(parts)}; {found['splits']['held_out']:,} held out of training as copies"
        f" of validation or test images (leaks avoided: {found['held_out_exact']:,} exact,"
        f" {found['splits']['held_out'] - found['held_out_exact'] - found['held_out_groups']:,} near,"
        f" {found['held_out_groups']:,} of a group in two splits); {found['exact_copies']:,} exact copies in all."
    )


def flat_params(params: Params) -> dict[str, str]:
    """Every parameter as `section.key` that outs depend on: not `runtime` (speed alone) nor `promote` (what comes after)."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = str(value)

    walk("", params.model_dump(exclude={"runtime", "promote"}))
    return flat
