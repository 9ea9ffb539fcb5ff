"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from headstart.core.errors import InputError

MOMENTUM = 0.9


class Schedule(Protocol):
    """A function from a step's number to the factor on the peak learning rate and the momentum."""

    def at(self, step: int) -> tuple[float, float]: ...


def cosine(start: float, end: float, share: float) -> float:
    """Interpolate along half a cosine, from `start` at share 0 to `end` at share 1."""
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class OneCycle:
    """The one-cycle schedule: cosine from lr/div up to lr, then down to lr/final_div; momentum mirrors it.

    Source: Smith 2018, arXiv:1803.09820, with the constants of fastai 2's `fit_one_cycle` and `fine_tune`.
    """

    steps: int
    warm_up: float = 0.25
    div: float = 25.0
    final_div: float = 1e5
    momentum: tuple[float, float, float] = (0.95, 0.85, 0.95)

    def at(self, step: int) -> tuple[float, float]:
        """Return the factor on the learning rate and the momentum for `step` of `steps`."""
        share = step / max(self.steps - 1, 1)
        high, low, end = self.momentum
        if share < self.warm_up:
            part = share / self.warm_up
            return cosine(1 / self.div, 1, part), cosine(high, low, part)
        part = (share - self.warm_up) / (1 - self.warm_up)
        return cosine(1, 1 / self.final_div, part), cosine(low, end, part)


@dataclass(frozen=True)
class WarmRestarts:
    """The SGDR schedule: cosine from lr to 0, then again from lr in a cycle `cycle_mult` times as long.

    Source: Loshchilov and Hutter 2016, SGDR, arXiv:1608.03983, section 3; `cycle_len`, `cycle_mult` as in fast.ai's lesson 3.

    Args:
        cycle: steps of the first cycle.
        cycle_mult: length of a cycle over the length of the previous one.
    """

    cycle: int
    cycle_mult: int = 1

    def at(self, step: int) -> tuple[float, float]:
        """Return the factor on the learning rate and the momentum for `step`."""
        length = self.cycle
        while step >= length:
            step, length = step - length, length * self.cycle_mult
        return cosine(1, 0, step / length), MOMENTUM


def group_rates(lr: float | Sequence[float], lr_ratio: float, groups: Sequence[str]) -> list[float]:
    """Return a learning rate for each layer group, earliest first.

    Args:
        lr: the last group's rate (each earlier group gets the next one's divided by `lr_ratio`), or a rate for every group.

    Raises:
        InputError: the number of rates is not the number of groups.
    """
    if isinstance(lr, int | float):
        return [lr / lr_ratio ** (len(groups) - 1 - group) for group in range(len(groups))]
    if len(lr) != len(groups):
        raise InputError(
            f"fine_tune.lr: {len(lr)} rates for {len(groups)} layer groups", wanted=f"one rate for each of {', '.join(groups)}"
        )
    return list(lr)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches in an epoch, without a last batch of one row, which batch norm cannot normalise."""
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 or count == 1)
