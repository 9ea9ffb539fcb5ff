"""Pictures of a run, as PNG bytes that depend on their data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headstart.evaluation.metrics import Reliability
from headstart.plotting import ACCENT, INK, QUIET, label, plain_frame, png

RULE_COLOURS = ("#b45309", "#0b6e99", "#7c3aed", "#15803d")


def lr_curve(
    curves: Sequence[tuple[Sequence[float], Sequence[float]]],
    suggestions: Mapping[str, Sequence[float]],
    chosen: float,
    abstained: bool,
) -> bytes:
    """Smoothed loss over learning rate for every seed, each rule's suggestions and the one chosen marked."""
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
    if drawn:  # none where training diverged at its first step
        lowest, highest = min(map(min, drawn)), max(losses[0] for losses in drawn)
        axes.set_ylim(max(0, lowest - 0.05 * highest), highest * 1.3)
    axes.legend(fontsize=8)
    plain_frame(axes)
    return png(figure)


def confusion(counts_cc: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """The confusion matrix, shaded by the share of the true class, counts written in where there is room."""
    side = min(14.0, max(4.5, 0.42 * len(classes) + 2))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    share = counts_cc / np.maximum(counts_cc.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 40:
        ticks = range(len(classes))
        names = [label(name) for name in classes]
        axes.set_xticks(ticks, names, rotation=90)
        axes.set_yticks(ticks, names)
        for i, j in np.argwhere(counts_cc > 0):
            colour = "white" if share[i, j] > 0.5 else INK
            axes.text(j, i, str(counts_cc[i, j]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    return png(figure)


def reliability_diagram(found: Reliability) -> bytes:
    """Accuracy over confidence, against the diagonal of perfect calibration; below it, how many images are in each bin."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(found.counts)
    places = (np.arange(bins) + 0.5) / bins
    there = found.counts > 0
    upper.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    upper.bar(places[there], found.accuracy[there], width=0.9 / bins, color=ACCENT)
    upper.plot(found.confidence[there], found.accuracy[there], color=INK, marker="o", markersize=4, linestyle="none")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), title=f"expected calibration error {found.expected_calibration_error:.3f}")
    upper.title.set_fontsize(10)
    lower.bar(places, found.counts, width=0.9 / bins, color=QUIET)
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    for axes in (upper, lower):
        plain_frame(axes)
    return png(figure)


@dataclass(frozen=True)
class Course:
    """How a stage trained.

    Args:
        trace: points [t, 3] of step, learning rate, mean loss since the point before.
        epochs: [e, 3] of the last step, validation log-loss and validation accuracy.
    """

    trace: NDArray[np.float64]
    epochs: NDArray[np.float64]


def training_curves(stages: Mapping[str, Course]) -> bytes:
    """By step: training and validation loss, the learning rate of the last layer group, and validation accuracy."""
    figure = Figure(figsize=(9, 2.7 * len(stages) + 0.4), layout="constrained")
    rows = figure.subplots(len(stages), 3, squeeze=False)
    for (stage, course), (left, middle, right) in zip(stages.items(), rows, strict=True):
        left.plot(course.trace[:, 0], course.trace[:, 2], color=QUIET, linewidth=1, label="training")
        left.plot(course.epochs[:, 0], course.epochs[:, 1], color=ACCENT, marker=".", label="validation")
        left.set(title=f"{stage}: loss", xlabel="step", ylim=(0, None))
        left.legend(fontsize=8)
        middle.plot(course.trace[:, 0], course.trace[:, 1], color=INK)
        middle.set(title="learning rate", xlabel="step")
        right.plot(course.epochs[:, 0], course.epochs[:, 2], color=ACCENT, marker=".")
        right.set(title="validation accuracy", xlabel="step")
        for axes in (left, middle, right):
            plain_frame(axes)
            axes.title.set_fontsize(10)
    return png(figure)
