"""Plots of a run, as PNG bytes that depend only on their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headstart.evaluation.metrics import Reliability
from headstart.plotting import ACCENT, INK, QUIET, label, plain_frame, png


def confusion(counts_cc: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Draw the confusion matrix, shaded by the share of the true class, with counts if there is room."""
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
    """Draw accuracy over confidence with the diagonal of perfect calibration, and below it the number of images per bin."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(found.counts)
    centres = (np.arange(bins) + 0.5) / bins
    filled = found.counts > 0
    upper.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    upper.bar(centres[filled], found.accuracy[filled], width=0.9 / bins, color=ACCENT)
    upper.plot(found.confidence[filled], found.accuracy[filled], color=INK, marker="o", markersize=4, linestyle="none")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), title=f"expected calibration error {found.expected_calibration_error:.3f}")
    upper.title.set_fontsize(10)
    lower.bar(centres, found.counts, width=0.9 / bins, color=QUIET)
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    for axes in (upper, lower):
        plain_frame(axes)
    return png(figure)


@dataclass(frozen=True)
class TrainingCurves:
    """The curves of one training.

    Args:
        trace: points [t, 3]: step, learning rate, mean loss since the previous point.
        epochs: [e, 3]: each epoch's last step, validation log-loss and validation accuracy.
    """

    trace: NDArray[np.float64]
    epochs: NDArray[np.float64]


def training_curves(stages: Mapping[str, TrainingCurves]) -> bytes:
    """Draw by step: training and validation loss, the last layer group's learning rate, and validation accuracy."""
    figure = Figure(figsize=(9, 2.7 * len(stages) + 0.4), layout="constrained")
    rows = figure.subplots(len(stages), 3, squeeze=False)
    for (stage, curves), (left, middle, right) in zip(stages.items(), rows, strict=True):
        left.plot(curves.trace[:, 0], curves.trace[:, 2], color=QUIET, linewidth=1, label="training")
        left.plot(curves.epochs[:, 0], curves.epochs[:, 1], color=ACCENT, marker=".", label="validation")
        left.set(title=f"{stage}: loss", xlabel="step", ylim=(0, None))
        left.legend(fontsize=8)
        middle.plot(curves.trace[:, 0], curves.trace[:, 1], color=INK)
        middle.set(title="learning rate", xlabel="step")
        right.plot(curves.epochs[:, 0], curves.epochs[:, 2], color=ACCENT, marker=".")
        right.set(title="validation accuracy", xlabel="step")
        for axes in (left, middle, right):
            plain_frame(axes)
            axes.title.set_fontsize(10)
    return png(figure)
