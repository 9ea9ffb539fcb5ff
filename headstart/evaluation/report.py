"""The report: one self-contained HTML file, the same bytes for the same run.

No time, host, commit or run id is in it; those are MLflow's.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from headstart.core.params import Params
from headstart.data.sources import SPLITS
from headstart.evaluation.metrics import wilson_interval


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
    names = {"head": "Frozen body, trained head", "fine_tuned": "Fine-tuned", "fine_tuned_tta": "Fine-tuned, TTA"}
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


def data_sentence(manifest: pd.DataFrame, quarantined: int) -> str:
    """How many images are where, in words."""
    splits = manifest["split"].value_counts()
    copies = len(manifest) - manifest["key"].nunique()
    parts = [f"{int(splits.get(split, 0)):,} {split}" for split in SPLITS]
    held_out = int(splits.get("held_out", 0))
    return (
        f"{len(manifest):,} images: {', '.join(parts)}; {held_out:,} held out of training as copies of validation or"
        f" test images; {copies:,} exact copies in all; {quarantined:,} files quarantined."
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
