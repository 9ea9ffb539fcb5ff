"""Paired tests, intervals and calibration against their formulas, and the choice of `bn_freeze: auto`."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from headstart.models.backbones import build_backbone
from headstart.statistics import Comparison, bootstrap_interval, compare, mcnemar, wilson_interval
from headstart.targets.reports.classification import reliability
from headstart.targets.single_label import SingleLabel
from headstart.targets.target import Answered
from headstart.training.bn_choice import choose


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 5), (3, 9), (0, 12), (40, 61), (700, 500)])
def test_mcnemar_is_the_exact_binomial_test(a, b):
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    exact = min(Fraction(1), 2 * Fraction(tail, 2 ** (a + b)))
    assert mcnemar(a, b) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("n", [30, 300, 5000])
def test_the_bootstrap_resamples_images(n):
    values = np.random.default_rng(0).gamma(2, size=n)
    rng = np.random.Generator(np.random.PCG64(1))
    means = np.concatenate([values[rng.integers(0, n, (min(2_000_000 // n, 10_000 - start), n))].mean(1)
                            for start in range(0, 10_000, 2_000_000 // n)])  # fmt: skip
    assert bootstrap_interval(values, seed=1) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-12)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(np.full(n, 0.25), seed=1) == (0.25, 0.25)


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (385, 400), (1, 3)])
def test_wilsons_interval(right, total):
    share, z2 = right / total, 1.959963984540054**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total * total))) / (1 + z2 / total)
    assert wilson_interval(right, total) == pytest.approx((centre - half, centre + half), abs=1e-12)


def predictions(right_n: np.ndarray, sure: float = 0.9) -> torch.Tensor:
    """Probabilities of three classes, where the true one is 0."""
    wrong = torch.tensor([(1 - sure) / 2, sure, (1 - sure) / 2], dtype=torch.float64)
    right = torch.tensor([sure, (1 - sure) / 2, (1 - sure) / 2], dtype=torch.float64)
    return torch.stack([right if one else wrong for one in right_n])


def test_a_comparison_counts_in_pairs_and_says_who_is_better():
    y = torch.zeros(200, dtype=torch.int64)
    a, b = np.arange(200) < 150, np.arange(200) < 180
    found = compare(predictions(a), predictions(b), y)
    assert (found.only_a, found.only_b) == (0, 30)
    assert found.high < 0
    assert found.better() == "b"
    assert compare(predictions(b), predictions(a), y).better() == "a"
    assert compare(predictions(a), predictions(a), y).better() == "undecided"
    contradiction = Comparison(images=200, only_a=0, only_b=20, p_value=1e-5, log_loss=0.2, low=0.1, high=0.3)
    assert contradiction.better() == "undecided"
    few = compare(predictions(a[140:168]), predictions(b[140:168]), y[:28])
    assert few.high < 0
    assert few.better() == "undecided"


def test_the_better_arm_is_kept_and_the_rule_of_thumb_decides_the_rest():
    y = torch.zeros(200, dtype=torch.int64)
    target = SingleLabel(("a", "b", "c"))
    good, bad = (Answered(predictions(np.arange(200) < right), target) for right in (190, 150))
    deep, shallow = (build_backbone(name, "random", 64).body for name in ("resnet50", "resnet34"))
    for body in (deep, shallow):
        found = choose(good, bad, y, body, 0)
        assert (found.bn_freeze, found.decided) == (True, True)
        found = choose(bad, good, y, body, 0)
        assert (found.bn_freeze, found.decided) == (False, True)
        assert "moving batch norm is better" in found.sentence()
    undecided = {name: choose(good, good, y, body, 0) for name, body in (("deep", deep), ("shallow", shallow))}
    assert (undecided["deep"].bn_freeze, undecided["deep"].decided) == (True, False)
    assert (undecided["shallow"].bn_freeze, undecided["shallow"].convolutions) == (False, 36)  # not deeper than ResNet-34
    rule = "by the rule of thumb of fast.ai's lesson 3 (36 convolutions are no more than ResNet-34's)"
    assert rule in undecided["shallow"].sentence()
    assert choose(good, good, y, nn.Linear(2, 2), 0).as_json()["sentence"]


def test_calibration_error_is_guos():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (500,), generator=generator)
    p = (torch.randn(500, 4, generator=generator) + torch.nn.functional.one_hot(y, 4)).double().softmax(1)
    confidence, said = p.max(1)
    error = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = (said[inside] == y[inside]).double().mean() - confidence[inside].mean()
            error += float(inside.double().mean() * gap.abs())
    found = reliability(p, y)
    assert found.expected_calibration_error == pytest.approx(error)
    assert found.counts.sum() == 500
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert reliability(sure, torch.tensor([0, 1])).expected_calibration_error == 0
    assert reliability(sure, torch.tensor([1, 0])).expected_calibration_error == 1
