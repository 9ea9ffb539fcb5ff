"""The learning-rate range test, and the rules that read a rate off its curve.

Source: Smith 2015, Cyclical Learning Rates, arXiv:1506.01186; rules as in fastai 2's `lr_find`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from headstart.seeds import scoped_seed
from headstart.targets.target import Loss
from headstart.training.loop import Batch, Forward, train_step
from headstart.training.optimizers import set_rates
from headstart.training.schedules import MOMENTUM

BETA = 0.98
STOP_FACTOR = 4.0
DECADE = 10.0

Prepare = Callable[[nn.Module], tuple[Forward, Optimizer]]


@dataclass(frozen=True)
class Curve:
    """The learning rates tried and the smoothed loss at each; a test of `steps` steps ends early if training diverges."""

    steps: int
    lrs: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Suggestion:
    """The learning rate that all seeds' curves suggest together.

    Args:
        lr: the consensus, or the default if `abstained` is not empty.
        by_rule: each rule's suggestions, one for each seed that gave one.
        by_seed: the geometric median of each seed's suggestions.
        spread: the largest suggestion over the smallest; 1 means that all agree.
        abstained: why the default is used; empty if there is a consensus.
    """

    lr: float
    by_rule: dict[str, list[float]]
    by_seed: list[float]
    spread: float
    abstained: str

    def as_json(self) -> dict[str, Any]:
        """Return the content of lr.json; `spread` is null if there are no suggestions."""
        return asdict(self) | {"spread": self.spread if math.isfinite(self.spread) else None, "sentence": self.sentence()}

    def sentence(self) -> str:
        """Return the finding in words."""
        if self.abstained:
            return f"no learning rate is suggested: {self.abstained}; the default {self.lr:.1e} is used"
        every = [lr for lrs in self.by_rule.values() for lr in lrs]
        span = f"range {min(every):.1e} to {max(every):.1e}"
        return f"suggested learning rate {self.lr:.1e} (median of {len(every)} suggestions; {span})"


def range_test(
    model: nn.Module,
    prepare: Prepare,
    batches: Iterator[Batch],
    *,
    loss: Loss,
    lr_min: float,
    lr_max: float,
    steps: int,
    seed: int,
) -> Curve:
    """Train a copy of `model` for `steps` steps while the learning rate grows exponentially.

    The model, its buffers and modes, the global random state and any sampler stay as they were.

    Args:
        prepare: puts the copy into training mode, and returns its forward pass and an optimizer whose groups' `peak` rates
            have the ratios to keep; the curve reports the last group's rate.
        batches: an endless stream.
        seed: seeds dropout.

    Returns:
        The curve, cut where the smoothed loss exceeds 4 times its best or is not finite.
    """
    forward, optimizer = prepare(copy.deepcopy(model))
    peak = optimizer.param_groups[-1]["peak"]
    lrs: list[float] = []
    losses: list[float] = []
    average, best = 0.0, math.inf
    with scoped_seed(seed):
        for step in range(steps):
            lr = lr_min * (lr_max / lr_min) ** (step / (steps - 1))
            set_rates(optimizer, lr / peak, MOMENTUM)
            x, y, _ = next(batches)
            average = BETA * average + (1 - BETA) * train_step(forward, optimizer, x, y, loss)
            smoothed = average / (1 - BETA ** (step + 1))
            if not math.isfinite(smoothed) or smoothed > STOP_FACTOR * best:
                break
            best = min(best, smoothed)
            lrs.append(lr)
            losses.append(smoothed)
    return Curve(steps, tuple(lrs), tuple(losses))


def trim(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the part that the rules look at: without the first tenth and the last five steps, up to a non-finite loss."""
    kept = slice(curve.steps // 10, -5)
    lrs, losses = np.array(curve.lrs[kept]), np.array(curve.losses[kept])
    bad = np.flatnonzero(~np.isfinite(losses))
    end = bad[0] if len(bad) else len(losses)
    return lrs[:end], losses[:end]


def valley(lrs: np.ndarray, losses: np.ndarray) -> float | None:
    """Return the rate about half-way down the longest decreasing subsequence."""
    if len(losses) < 2:
        return None
    length = np.ones(len(losses), dtype=int)
    for i in range(1, len(losses)):
        earlier = length[:i][losses[:i] > losses[i]]
        length[i] += earlier.max(initial=0)
    end = int(length.argmax())
    longest = int(length[end])
    start, third = end - longest, longest // 3
    return float(lrs[max(start + third + third // 2, 0)])


def steep(lrs: np.ndarray, losses: np.ndarray) -> float | None:
    """Return the rate where the loss falls fastest per unit of ln(lr)."""
    if len(losses) < 2:
        return None
    return float(lrs[(np.diff(losses) / np.diff(np.log(lrs))).argmin()])


def minimum(lrs: np.ndarray, losses: np.ndarray) -> float | None:
    """Return a tenth of the rate with the lowest loss."""
    return float(lrs[losses.argmin()] / 10) if len(losses) else None


def slide(lrs: np.ndarray, losses: np.ndarray, window: int = 15, threshold: float = 0.005) -> float | None:
    """Slide a window from the right until the gradient's difference across it falls to the threshold; return the rate there."""
    right, left = -1, -1 - window
    if len(losses) < -left:
        return None
    gradients = np.gradient(losses)
    suggestion = float(lrs[left])
    while left >= -len(losses) and abs(gradients[right] - gradients[left]) > threshold:
        suggestion = float(lrs[left])
        right, left = right - 1, left - 1
    return suggestion


RULES = {"valley": valley, "steep": steep, "minimum": minimum, "slide": slide}


def suggest(curves: Sequence[Curve], default: float) -> Suggestion:
    """Combine every rule on every seed's curve; the consensus is the geometric median of all suggestions.

    It abstains and returns the default in three cases: fewer than two rules suggest a rate; the seeds differ by more than a
    decade; or the rules do, compared by their medians over the seeds and without the farthest rule.
    """
    found = [{name: rule(*trim(curve)) for name, rule in RULES.items()} for curve in curves]
    by_rule = {name: [lr for one in found if (lr := one[name]) is not None] for name in RULES}
    by_seed = [_geometric_median(lrs) for one in found if (lrs := [lr for lr in one.values() if lr is not None])]
    every = sorted(lr for lrs in by_rule.values() for lr in lrs)
    medians = sorted(_geometric_median(lrs) for lrs in by_rule.values() if lrs)
    if len(medians) < 2:
        return Suggestion(default, by_rule, by_seed, math.inf, "the curves are too short: training diverged at once")
    core = min(medians[-2] / medians[0], medians[-1] / medians[1]) if len(medians) > 2 else medians[1] / medians[0]
    between_seeds = max(by_seed) / min(by_seed)
    abstained = ""
    if core > DECADE:
        abstained = f"the rules disagree by a factor of {core:.3g}"
    elif between_seeds > DECADE:
        abstained = f"the seeds disagree by a factor of {between_seeds:.3g}"
    lr = default if abstained else _geometric_median(every)
    return Suggestion(lr, by_rule, by_seed, every[-1] / every[0], abstained)


def _geometric_median(values: Sequence[float]) -> float:
    return float(np.exp(np.median(np.log(values))))
