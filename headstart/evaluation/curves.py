"""Plots of a training, as PNG bytes that depend only on their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headstart.plotting import ACCENT, INK, QUIET, plain_frame, png


@dataclass(frozen=True)
class TrainingCurves:
    """The curves of one training.

    Args:
        trace: points [t, 3]: step, learning rate, mean loss since the previous point.
        epochs: [e, 3]: each epoch's last step, validation loss and validation score.
    """

    trace: NDArray[np.float64]
    epochs: NDArray[np.float64]


def training_curves(stages: Mapping[str, TrainingCurves], score: str) -> bytes:
    """Draw by step: training and validation loss, the last layer group's learning rate, and the validation score."""
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
        right.set(title=f"validation {score}", xlabel="step")
        for axes in (left, middle, right):
            plain_frame(axes)
            axes.title.set_fontsize(10)
    return png(figure)
