"""Tests and intervals for proportions and for two models on the same images. Shape legend: n images, c classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

RESAMPLES = 10_000
FEWEST = 30  # with fewer images nothing is decided: a percentile interval would be too narrow
CHUNK = 2_000_000  # drawn numbers in memory at a time


@dataclass(frozen=True)
class Comparison:
    """Model B compared with model A.

    Args:
        images: how many were compared.
        only_a, only_b: images that only A, or only B, classifies correctly.
        p_value: McNemar's exact test of the hypothesis that both are correct equally often.
        log_loss: mean of B's log-loss minus A's, in nats; below 0, B is better.
        low, high: its 95 % bootstrap interval over images.
    """

    images: int
    only_a: int
    only_b: int
    p_value: float
    log_loss: float
    low: float
    high: float

    def better(self) -> str:
        """Return "a", "b" or "undecided": neither test is significant at 95 %, or the two contradict each other.

        With fewer than 30 images the answer is always "undecided".
        """
        if self.images < FEWEST:
            return "undecided"
        by_loss = "b" if self.high < 0 else "a" if self.low > 0 else ""
        by_hits = ("b" if self.only_b > self.only_a else "a") if self.p_value < 0.05 else ""
        found = {by_loss, by_hits} - {""}
        return found.pop() if len(found) == 1 else "undecided"


def compare(a_nc: torch.Tensor, b_nc: torch.Tensor, y_n: torch.Tensor, seed: int = 0) -> Comparison:
    """Compare the probabilities [n, c] of two models on the same n images.

    Args:
        seed: the seed of the bootstrap.
    """
    right_a, right_b = (p.argmax(1) == y_n for p in (a_nc, b_nc))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    loss_a, loss_b = (-p[torch.arange(len(y_n)), y_n].double().clamp_min(1e-15).log() for p in (a_nc, b_nc))
    difference_n = (loss_b - loss_a).numpy()
    low, high = bootstrap_interval(difference_n, seed)
    return Comparison(len(y_n), only_a, only_b, mcnemar(only_a, only_b), float(difference_n.mean()), low, high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided exact p-value of the disagreements' split, if either model were equally likely to be correct.

    Source: McNemar 1947, Psychometrika 12:153-157; exact as in Edwards 1948: binomial with p = 1/2.
    """
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def bootstrap_interval(values_n: NDArray[np.float64], seed: int, share: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the mean, resampling images. Source: Efron 1979, Annals of Statistics 7:1-26."""
    if np.ptp(values_n) == 0:  # scipy divides by the spread
        return float(values_n[0]), float(values_n[0])
    found = bootstrap(
        (values_n,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, CHUNK // len(values_n)),
        confidence_level=share,
        method="percentile",
        rng=np.random.Generator(np.random.PCG64(seed)),
    ).confidence_interval
    return float(found.low), float(found.high)


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion. Source: Wilson 1927, JASA 22:209-212."""
    found = binomtest(right, total).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
