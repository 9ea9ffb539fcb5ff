"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass


def cosine(start: float, end: float, share: float) -> float:
    """From `start` at share 0 to `end` at share 1 along half a cosine."""
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class OneCycle:
    """One-cycle: cosine from lr/div up to lr, then down to lr/final_div; momentum mirrors it.

    Source: Smith 2018, arXiv:1803.09820; constants of fastai 2's `fit_one_cycle` and `fine_tune`.
    """

    steps: int
    warm_up: float = 0.25
    div: float = 25.0
    final_div: float = 1e5
    momentum: tuple[float, float, float] = (0.95, 0.85, 0.95)

    def at(self, step: int) -> tuple[float, float]:
        """The factor on the learning rate, and the momentum, for `step` of `steps`."""
        share = step / max(self.steps - 1, 1)
        high, low, end = self.momentum
        if share < self.warm_up:
            part = share / self.warm_up
            return cosine(1 / self.div, 1, part), cosine(high, low, part)
        part = (share - self.warm_up) / (1 - self.warm_up)
        return cosine(1, 1 / self.final_div, part), cosine(low, end, part)


def group_rates(lr: float, lr_ratio: float, groups: int) -> list[float]:
    """Learning rates by layer group, earliest first: the last has `lr`, each earlier one the next's over `lr_ratio`."""
    return [lr / lr_ratio ** (groups - 1 - group) for group in range(groups)]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches of an epoch; a last batch of one row is dropped, batch norm cannot normalise it."""
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 or count == 1)
