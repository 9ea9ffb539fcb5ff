"""Tests and intervals for proportions and for two models on the same images. Shape legend: n images, c classes.

Functions that need scipy.stats import it: it takes 0.6 s, and what only predicts needs none of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

RESAMPLES = 10_000
MOST_DRAWN = 200_000_000  # numbers: for more than 20,000 images there are fewer resamples, but at least 1,000
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

    @property
    def gain(self) -> float:
        """Return how much higher B's accuracy is."""
        return (self.only_b - self.only_a) / self.images

    @property
    def test(self) -> str:
        """Return the name of the test."""
        return "McNemar"

    def versus(self, a: str) -> str:
        """Say what B gains over A, which is called `a`."""
        return f"it alone is right on {self.only_b}, {a} alone on {self.only_a}: accuracy {self.gain:+.2%}"

    def words(self, a: str, b: str, images: str) -> str:
        """Return the figures in words, where A and B are called `a` and `b`, and the images `images`."""
        return (
            f"log-loss of {b} minus {a} {self.log_loss:+.4f} (95 % {self.low:+.4f} to {self.high:+.4f}); "
            f"only {a} is right on {self.only_a:,} {images}, only {b} on {self.only_b:,} (McNemar p = {self.p_value:.3f})"
        )


@dataclass(frozen=True)
class ScoreComparison:
    """Model B compared with model A by a score of each image, of which more is better.

    Args:
        images: how many were compared.
        score: what the score is, such as "F2".
        difference: mean of B's score minus A's.
        low, high: its 95 % bootstrap interval over images.
        p_value: paired permutation test of the hypothesis that the two models are interchangeable.
        gain: the difference in the unit of `promote.margin`: itself, or as a share of A's mean error.
    """

    images: int
    score: str
    difference: float
    low: float
    high: float
    p_value: float
    gain: float

    def better(self) -> str:
        """Return "a", "b" or "undecided": test and interval must agree, and with fewer than 30 images nothing is decided."""
        if self.images < FEWEST or self.p_value >= 0.05 or self.low <= 0 <= self.high:
            return "undecided"
        return "b" if self.difference > 0 else "a"

    @property
    def test(self) -> str:
        """Return the name of the test."""
        return "permutation"

    def versus(self, a: str) -> str:
        """Say what B gains over A, which is called `a`."""
        return f"its {self.score} is better than that of {a} by {self.difference:+.4g}, a gain of {self.gain:+.2%}"

    def words(self, a: str, b: str, images: str) -> str:
        """Return the figures in words, where A and B are called `a` and `b`, and the images `images`."""
        better = "higher" if self.score != "error" else "smaller"
        return (
            f"{self.score} of {b} is {self.difference:+.4g} {better} than of {a} on {self.images:,} {images}"
            f" (95 % {self.low:+.4g} to {self.high:+.4g}; permutation p = {self.p_value:.3f})"
        )


def compare_scores(
    a_n: NDArray[np.float64], b_n: NDArray[np.float64], score: str, seed: int = 0, share_of: float = 1.0
) -> ScoreComparison:
    """Compare two models' scores [n] of the same images; more is better.

    Args:
        score: what the score is.
        share_of: the gain is the difference divided by this.
        seed: of the bootstrap and of the permutations.
    """
    difference_n = b_n - a_n
    low, high = bootstrap_interval(difference_n, seed)
    mean = float(difference_n.mean())
    return ScoreComparison(len(a_n), score, mean, low, high, permutation(difference_n, seed), mean / (share_of or 1.0))


def permutation(difference_n: NDArray[np.float64], seed: int) -> float:
    """Return the two-sided p-value of a mean difference, if each image's two scores could be exchanged.

    Source: Fisher 1935, The Design of Experiments, section 21.
    """
    from scipy.stats import permutation_test

    if not difference_n.any():
        return 1.0
    found = permutation_test(
        (difference_n,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_resamples(len(difference_n)) - 1,
        batch=max(1, CHUNK // len(difference_n)),
        rng=np.random.Generator(np.random.PCG64(seed)),
    )
    return float(found.pvalue)


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
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def bootstrap_interval(values_n: NDArray[np.float64], seed: int, share: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the mean, resampling images. Source: Efron 1979, Annals of Statistics 7:1-26."""
    from scipy.stats import bootstrap

    if np.ptp(values_n) == 0:  # scipy divides by the spread
        return float(values_n[0]), float(values_n[0])
    found = bootstrap(
        (values_n,),
        np.mean,
        n_resamples=_resamples(len(values_n)),
        batch=max(1, CHUNK // len(values_n)),
        confidence_level=share,
        method="percentile",
        rng=np.random.Generator(np.random.PCG64(seed)),
    ).confidence_interval
    return float(found.low), float(found.high)


def _resamples(images: int) -> int:
    return min(RESAMPLES, max(RESAMPLES // 10, MOST_DRAWN // images))


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion. Source: Wilson 1927, JASA 22:209-212."""
    from scipy.stats import binomtest

    found = binomtest(right, total).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
