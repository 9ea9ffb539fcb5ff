"""The report: one self-contained HTML file, the same bytes for the same run.

No time, host, commit or run id is in it; those are MLflow's.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from headstart.core.params import Params
from headstart.data.labels import SPLITS
from headstart.evaluation.metrics import wilson_interval

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


def thumbnail(image: torch.Tensor) -> str:
    """A [3, s, s] uint8 image as base64 PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return base64_text(buffer.getvalue())


def result_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """metrics.json as rows with intervals."""
    names = {
        "head": "Frozen body, trained head",
        "head_tta": "Frozen body, trained head, TTA",
        "fine_tuned": "Fine-tuned",
        "fine_tuned_tta": "Fine-tuned, TTA",
    }
    rows = []
    for key, name in names.items():
        accuracy, total = metrics[key]["accuracy"], metrics["n_test"]
        low, high = wilson_interval(round(accuracy * total), total)
        rows.append({"name": name, "low": low, "high": high, **metrics[key]})
    return rows


def class_rows(measured: Sequence[Mapping[str, float]], manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """Per-class metrics with the number of images in each split."""
    counts = manifest.groupby(["class_index", "split"]).size()
    names = manifest.groupby("class_index")["label"].first()
    return [
        {"name": names[i], **row, **{split: int(counts.get((i, split), 0)) for split in SPLITS}}
        for i, row in enumerate(measured)
    ]


def lr_sentence(found: Mapping[str, Any]) -> str:
    """What the learning-rate search found, in words."""
    if found["abstained"]:
        return f"The rules and seeds disagree by more than a decade: the default {found['lr']:.2g} is used."
    return f"Suggested learning rate {found['lr']:.2g}; all rules and seeds lie within a factor of {found['spread']:.3g}."


def data_section(folder: Path) -> dict[str, Any]:
    """What link_data said of the data: its counts as sentences and rows, near copies, pictures in base64."""
    found = json.loads((folder / "summary.json").read_text())
    copies = pd.read_csv(folder / "near_duplicates.csv", dtype=str, keep_default_na=False)
    rows = [("images", found["images"]), ("quarantined", found["quarantined"]), ("ignored", found["ignored"])]
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
    """Every parameter as `section.key`, but for `runtime`, which changes nothing but speed."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = str(value)

    walk("", params.model_dump(exclude={"runtime"}))
    return flat
