"""The files that a learning-rate search writes: lr.json, curve.csv and curve.png."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from headstart.core.files import write_bytes, write_checked_json
from headstart.plotting import INK, QUIET, plain_frame, png
from headstart.training.loop import csv_bytes
from headstart.training.lr_search import Curve, Suggestion

logger = logging.getLogger("headstart")
RULE_COLOURS = ("#b45309", "#0b6e99", "#7c3aed", "#15803d")


def write_search(folder: Path, curves: Sequence[Curve], found: Suggestion) -> float:
    """Write the finding, every seed's curve and a picture that marks all suggestions; return the rate to use."""
    write_checked_json(folder / "lr.json", found.as_json())
    points = [(seed, *pair) for seed, one in enumerate(curves) for pair in zip(one.lrs, one.losses, strict=True)]
    write_bytes(folder / "curve.csv", csv_bytes(points, ["seed", "lr", "smoothed_loss"]))
    shown = [(one.lrs, one.losses) for one in curves]
    write_bytes(folder / "curve.png", lr_curve(shown, found.by_rule, found.lr, bool(found.abstained)))
    logger.info("  %s", found.sentence())
    return found.lr


def lr_curve(
    curves: Sequence[tuple[Sequence[float], Sequence[float]]],
    suggestions: Mapping[str, Sequence[float]],
    chosen: float,
    abstained: bool,
) -> bytes:
    """Draw smoothed loss over learning rate for every seed, and mark each rule's suggestions and the chosen rate."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for lrs, losses in curves:
        axes.plot(lrs, losses, color=QUIET, linewidth=1)
    for (rule, lrs), colour in zip(suggestions.items(), RULE_COLOURS, strict=False):
        for i, lr in enumerate(lrs):
            axes.axvline(lr, color=colour, linewidth=0.8, alpha=0.6, label=rule if i == 0 else None)
    how = "default (abstained)" if abstained else "chosen"
    axes.axvline(chosen, color=INK, linewidth=2, label=f"{how}: {chosen:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    drawn = [losses for _, losses in curves if losses]
    if drawn:  # empty if training diverged at its first step
        lowest, highest = min(map(min, drawn)), max(losses[0] for losses in drawn)
        axes.set_ylim(max(0, lowest - 0.05 * highest), highest * 1.3)
    axes.legend(fontsize=8)
    plain_frame(axes)
    return png(figure)
