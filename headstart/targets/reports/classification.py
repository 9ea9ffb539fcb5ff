"""Classification metrics, computed from counts. Shape legend: n images, c classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from headstart.statistics import wilson_interval


def summarise(p_nc: torch.Tensor, y_n: torch.Tensor) -> dict[str, float]:
    """Return the accuracy with its 95 % Wilson interval, the log-loss (nats) and the calibration error of probabilities."""
    right = int((p_nc.argmax(1) == y_n).sum())
    low, high = wilson_interval(right, len(y_n))
    likelihood = p_nc[torch.arange(len(y_n)), y_n].clamp_min(1e-15)
    return {
        "accuracy": right / len(y_n),
        "accuracy_low": low,
        "accuracy_high": high,
        "log_loss": float(-likelihood.log().sum()) / len(y_n),
        "calibration_error": reliability(p_nc, y_n).expected_calibration_error,
    }


@dataclass(frozen=True)
class Reliability:
    """A model's accuracy at each level of confidence.

    Args:
        counts: images in each of the equally wide bins of confidence, [b].
        confidence, accuracy: means over the images of each bin, [b]; 0 in empty bins.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """Return the mean gap between confidence and accuracy. Source: Guo et al. 2017, arXiv:1706.04599, section 2."""
        return float((self.counts * np.abs(self.confidence - self.accuracy)).sum() / self.counts.sum())


def reliability(p_nc: torch.Tensor, y_n: torch.Tensor, bins: int = 15) -> Reliability:
    """Measure accuracy in equally wide bins (low, high] of confidence, the largest probability."""
    confidence_n, said_n = (part.numpy() for part in p_nc.double().max(1))
    right_n = (said_n == y_n.numpy()).astype(float)
    bin_n = np.clip(np.ceil(confidence_n * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(bin_n, minlength=bins)
    sums = (np.bincount(bin_n, weights=values, minlength=bins) for values in (confidence_n, right_n))
    confidence, accuracy = (total / np.maximum(counts, 1) for total in sums)
    return Reliability(counts, confidence, accuracy)


def confusion_matrix(y_n: torch.Tensor, predicted_n: torch.Tensor, classes: int) -> NDArray[np.int64]:
    """Return counts [c, c]: rows are the true classes, columns the predicted ones."""
    counts: NDArray[np.int64] = sklearn.confusion_matrix(y_n.numpy(), predicted_n.numpy(), labels=range(classes))
    return counts


def per_class(y_n: torch.Tensor, predicted_n: torch.Tensor, classes: int) -> list[dict[str, float]]:
    """Return precision, recall, F1 and number of test images for each class; a ratio with denominator 0 is 0."""
    measured = sklearn.precision_recall_fscore_support(
        y_n.numpy(), predicted_n.numpy(), labels=range(classes), average=None, zero_division=0.0
    )
    names = ("precision", "recall", "f1", "images")
    return [dict(zip(names, row, strict=True)) for row in zip(*(values.tolist() for values in measured), strict=True)]


def most_confused(counts_cc: NDArray[np.int64], classes: tuple[str, ...], most: int = 10) -> list[tuple[str, str, int]]:
    """Return (true, predicted, count) of the most frequent errors, most frequent first."""
    pairs = [
        (int(counts_cc[i, j]), classes[i], classes[j])
        for i in range(len(classes))
        for j in range(len(classes))
        if i != j and counts_cc[i, j]
    ]
    return [(true, said, count) for count, true, said in sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))[:most]]
