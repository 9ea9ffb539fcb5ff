"""Pictures of a run, as PNG bytes that depend on their data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

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
    lowest = min(min(losses) for _, losses in curves)
    highest = max(losses[0] for _, losses in curves)
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


def training_curves(histories: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Training and validation loss, and validation accuracy, by epoch.

    Args:
        histories: by stage, [epochs, 3]: training loss, validation log-loss, validation accuracy.
    """
    figure = Figure(figsize=(7, 2.6 * len(histories) + 0.4), layout="constrained")
    rows = figure.subplots(len(histories), 2, squeeze=False)
    for (stage, history), (left, right) in zip(histories.items(), rows, strict=True):
        epochs = np.arange(1, len(history) + 1)
        left.plot(epochs, history[:, 0], color=QUIET, marker=".", label="training")
        left.plot(epochs, history[:, 1], color=ACCENT, marker=".", label="validation")
        left.set(title=f"{stage}: loss", xlabel="epoch")
        left.legend(fontsize=8)
        right.plot(epochs, history[:, 2], color=ACCENT, marker=".")
        right.set(title=f"{stage}: validation accuracy", xlabel="epoch")
        for axes in (left, right):
            plain_frame(axes)
            axes.title.set_fontsize(10)
    return png(figure)
