"""Metrics from counts. Shape legend: n images, c classes, v views (the plain one first)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray


def test_time_augmentation(logits_vnc: torch.Tensor, formula: str) -> torch.Tensor:
    """Probabilities [n, c] float64 from the logits of all views.

    Args:
        logits_vnc: view 0 is the plain one.
        formula: "mean" of the softmax over all views (fastai 0.7), or "blend", .25 plain + .75 mean of the
            augmented ones (fastai 2).
    """
    p_vnc = logits_vnc.double().softmax(-1)
    if formula == "mean" or len(p_vnc) == 1:
        return p_vnc.mean(0)
    return 0.25 * p_vnc[0] + 0.75 * p_vnc[1:].mean(0)


def summarise(p_nc: torch.Tensor, y_n: torch.Tensor) -> dict[str, float]:
    """Accuracy and log-loss (nats) of probabilities, from counts and one division."""
    right = int((p_nc.argmax(1) == y_n).sum())
    likelihood = p_nc[torch.arange(len(y_n)), y_n].clamp_min(1e-15)
    return {"accuracy": right / len(y_n), "log_loss": float(-likelihood.log().sum()) / len(y_n)}


def confusion_matrix(y_n: torch.Tensor, predicted_n: torch.Tensor, classes: int) -> NDArray[np.int64]:
    """Counts [c, c]: rows are the true classes, columns the predicted ones."""
    flat = torch.bincount(y_n * classes + predicted_n, minlength=classes * classes)
    counts: NDArray[np.int64] = flat.reshape(classes, classes).numpy()
    return counts


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a proportion. Source: Wilson 1927, JASA 22:209-212."""
    share, z2 = right / total, z * z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def per_class(counts_cc: NDArray[np.int64]) -> list[dict[str, float]]:
    """Precision, recall, F1 and number of test images of each class; 0 where a ratio has no denominator."""
    rows = []
    for i in range(len(counts_cc)):
        hit, true, said = int(counts_cc[i, i]), int(counts_cc[i].sum()), int(counts_cc[:, i].sum())
        precision, recall = hit / said if said else 0.0, hit / true if true else 0.0
        f1 = 2 * hit / (true + said) if true + said else 0.0
        rows.append({"precision": precision, "recall": recall, "f1": f1, "images": true})
    return rows


def most_confused(counts_cc: NDArray[np.int64], classes: tuple[str, ...], most: int = 10) -> list[tuple[str, str, int]]:
    """(true, predicted, count) of the commonest errors, most first."""
    pairs = [
        (int(counts_cc[i, j]), classes[i], classes[j])
        for i in range(len(classes))
        for j in range(len(classes))
        if i != j and counts_cc[i, j]
    ]
    return [(true, said, count) for count, true, said in sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))[:most]]
