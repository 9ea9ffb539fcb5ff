"""Pictures of a run, as PNG bytes that depend on their data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headstart.evaluation.metrics import Reliability
from headstart.plotting import ACCENT, INK, QUIET, label, plain_frame, png


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
class TrainingCurves:
    """How a stage trained.

    Args:
        trace: points [t, 3] of step, learning rate, mean loss since the point before.
        epochs: [e, 3] of the last step, validation log-loss and validation accuracy.
    """

    trace: NDArray[np.float64]
    epochs: NDArray[np.float64]


def training_curves(stages: Mapping[str, TrainingCurves]) -> bytes:
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
