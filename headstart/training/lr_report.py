"""What a learning-rate search leaves behind: lr.json, curve.csv, curve.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headstart.core.files import write_bytes, write_checked_json
from headstart.evaluation.plots import lr_curve
from headstart.training.loop import csv
from headstart.training.lr_search import Curve, Suggestion


def write_search(folder: Path, curves: Sequence[Curve], found: Suggestion) -> None:
    """Write the finding, every seed's curve, and the picture with all suggestions marked."""
    write_checked_json(folder / "lr.json", found.as_json())
    points = [(seed, *pair) for seed, one in enumerate(curves) for pair in zip(one.lrs, one.losses, strict=True)]
    write_bytes(folder / "curve.csv", csv(points, ["seed", "lr", "smoothed_loss"]))
    shown = [(one.lrs, one.losses) for one in curves]
    write_bytes(folder / "curve.png", lr_curve(shown, found.by_rule, found.lr, bool(found.abstained)))
