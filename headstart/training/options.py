"""Training options that the head and the unfrozen network share, as params.yaml gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import nn

from headstart.core.params import Training
from headstart.targets.target import WORSE, Loss, LossRule, Target
from headstart.training.optimizers import Kind, build_optimizer
from headstart.training.schedules import OneCycle, Schedule, WarmRestarts


@dataclass(frozen=True)
class Objective:
    """What a training minimises, and how the best epoch is known.

    Args:
        loss: to minimise.
        guess: the loss of the best constant answer, by which a collapse of a trained network is seen; None: none is looked for.
        chosen_by: the validation score whose lowest value is the best epoch's.
        worse: a trained network's loss in its first steps that is this many times a guess's has been spoilt.
    """

    loss: Loss
    guess: float | None
    chosen_by: str
    worse: float = WORSE


@dataclass(frozen=True)
class Options:
    """Training options, named as in params.yaml; the defaults are fastai 2's.

    Args:
        schedule, cycle_len, cycle_mult: "one_cycle" over all epochs of a phase, or "sgdr": cycles of `cycle_len`
            epochs, each `cycle_mult` times as long as the previous one.
        optimizer, weight_decay: see `build_optimizer`.
        loss, label_smoothing, balance: see `LossRule`.
        patience: training stops after this many epochs without a better one; 0: never.
    """

    batch_size: int = 64
    schedule: Literal["one_cycle", "sgdr"] = "one_cycle"
    cycle_len: int = 1
    cycle_mult: int = 1
    optimizer: Kind = "adamw"
    weight_decay: float = 0.01
    loss: Literal["auto", "mse", "l1", "huber"] = "auto"
    label_smoothing: float = 0.0
    balance: Literal["none", "weights", "sampling"] = "none"
    patience: int = 0

    def over(self, steps: int, one_cycle: OneCycle) -> Schedule:
        """Return the schedule of a phase with `steps` steps per epoch."""
        return one_cycle if self.schedule == "one_cycle" else WarmRestarts(self.cycle_len * steps, self.cycle_mult)

    @property
    def loss_rule(self) -> LossRule:
        """Return what the training minimises."""
        return LossRule(self.label_smoothing, self.balance, self.loss)

    def sampling(self, target: Target, y: torch.Tensor) -> torch.Tensor | None:
        """Return weights [n] to draw training images by; None if each is to come once an epoch."""
        return target.sampling_weights(y) if self.balance == "sampling" else None

    def objective(self, target: Target, y: torch.Tensor) -> Objective:
        """Return what a training with these encoded labels minimises."""
        loss = per_member(target.loss(self.loss_rule, y))
        return Objective(loss, target.guess(self.loss_rule, y), target.chosen_by, target.worse)

    def optimize(self, groups: Sequence[tuple[Sequence[nn.Parameter], float]]) -> torch.optim.Optimizer:
        """Build the optimizer over layer groups of (parameters, peak rate)."""
        return build_optimizer(groups, self.optimizer, self.weight_decay)


def options_of(section: Training) -> Options:
    """Read the options from a section of params.yaml."""
    values = section.model_dump(include={field.name for field in fields(Options)})
    return Options(**values | {"patience": 0 if section.patience == "none" else section.patience})


def per_member(loss: Loss) -> Loss:
    """Return a loss that also takes the logits of s members for the same n rows, [s x n, c]; see `ColumnHead`."""

    def whole(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(logits, torch.cat([y] * (len(logits) // len(y))))

    return whole
