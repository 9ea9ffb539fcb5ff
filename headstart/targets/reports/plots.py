"""Plots of answers beside the truth, as PNG bytes that depend only on their data. Shape legend: n images, c classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headstart.plotting import ACCENT, INK, QUIET, label, plain_frame, png
from headstart.targets.reports.classification import Reliability


def confusion(counts_cc: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Draw the confusion matrix, shaded by the share of the true class, with counts if there is room."""
    return shares(counts_cc, counts_cc.sum(1), classes, xlabel="predicted", ylabel="true")


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


def precision_recall(curves: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64]]]) -> bytes:
    """Draw precision over recall, one line for each (name, recall, precision)."""
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    axes = figure.subplots()
    lines = [axes.plot(recall, precision, linewidth=1.4)[0] for _, recall, precision in curves]
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.legend(lines, [label(name) for name, _, _ in curves], fontsize=8, loc="lower left")
    plain_frame(axes)
    return png(figure)


def together(counts_cc: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Draw how often two classes are labels of the same image, as a share of the row's class."""
    return shares(counts_cc, np.diag(counts_cc), classes, xlabel="is there too", ylabel="where this is")


def shares(
    counts_cc: NDArray[np.int64], totals_c: NDArray[np.int64], classes: Sequence[str], *, xlabel: str, ylabel: str
) -> bytes:
    """Draw counts [c, c] shaded by their share of each row's total, with the counts if there is room."""
    side = min(14.0, max(4.5, 0.42 * len(classes) + 2))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    share = counts_cc / np.maximum(totals_c[:, None], 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 40:
        ticks = range(len(classes))
        names = [label(name) for name in classes]
        axes.set_xticks(ticks, names, rotation=90)
        axes.set_yticks(ticks, names)
        for i, j in np.argwhere(counts_cc > 0):
            colour = "white" if share[i, j] > 0.5 else INK
            axes.text(j, i, str(counts_cc[i, j]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return png(figure)


def predicted_against_true(truth_n: NDArray[np.float64], said_n: NDArray[np.float64]) -> bytes:
    """Draw predicted over true numbers with the diagonal of perfect answers."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    ends = [min(truth_n.min(), said_n.min()), max(truth_n.max(), said_n.max())]
    axes.plot(ends, ends, color=QUIET, linewidth=1)
    axes.scatter(truth_n, said_n, s=9, color=ACCENT, alpha=min(1.0, 30 / len(truth_n) ** 0.5), linewidths=0)
    axes.set(xlabel="true", ylabel="predicted")
    plain_frame(axes)
    return png(figure)


def residuals(said_n: NDArray[np.float64], residual_n: NDArray[np.float64]) -> bytes:
    """Draw residuals (predicted minus true) over predictions, and their histogram."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(0, color=QUIET, linewidth=1)
    left.scatter(said_n, residual_n, s=9, color=ACCENT, alpha=min(1.0, 30 / len(said_n) ** 0.5), linewidths=0)
    left.set(xlabel="predicted", ylabel="predicted minus true")
    differ = np.ptp(residual_n) > 1e-9 * np.abs(residual_n).max()  # by more than rounding: bins narrower than that are refused
    right.hist(residual_n, bins=40 if differ else 1, color=ACCENT)
    right.set(xlabel="predicted minus true", ylabel="count")
    for axes in (left, right):
        plain_frame(axes)
    return png(figure)
