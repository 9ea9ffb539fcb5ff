"""Training options that the head and the unfrozen network share, as params.yaml gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import nn

from headstart.core.params import Training
from headstart.training.optimizers import Kind, Loss, build_optimizer, class_weights, cross_entropy
from headstart.training.schedules import OneCycle, Schedule, WarmRestarts


@dataclass(frozen=True)
class Options:
    """Training options, named as in params.yaml; the defaults are fastai 2's.

    Args:
        schedule, cycle_len, cycle_mult: "one_cycle" over all epochs of a phase, or "sgdr": cycles of `cycle_len`
            epochs, each `cycle_mult` times as long as the previous one.
        optimizer, weight_decay: see `build_optimizer`.
        label_smoothing: share of the target spread over all classes, in training only.
        balance: treatment of classes of unequal size: "none", "weights" in the loss, or "sampling".
        patience: training stops after this many epochs without a better one; 0: never.
    """

    batch_size: int = 64
    schedule: Literal["one_cycle", "sgdr"] = "one_cycle"
    cycle_len: int = 1
    cycle_mult: int = 1
    optimizer: Kind = "adamw"
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    balance: Literal["none", "weights", "sampling"] = "none"
    patience: int = 0

    def over(self, steps: int, one_cycle: OneCycle) -> Schedule:
        """Return the schedule of a phase with `steps` steps per epoch."""
        return one_cycle if self.schedule == "one_cycle" else WarmRestarts(self.cycle_len * steps, self.cycle_mult)

    def loss(self, y_n: torch.Tensor, device: torch.device) -> Loss:
        """Return the loss to minimise, given the training images' classes."""
        weights = class_weights(y_n, int(y_n.max()) + 1).to(device) if self.balance == "weights" else None
        return cross_entropy(self.label_smoothing, weights)

    def guess(self, y_n: torch.Tensor) -> float:
        """Return the loss (nats) of the best constant answer for these training classes: the entropy of the targets."""
        counts = torch.bincount(y_n).double()
        if self.balance != "none":
            counts = (counts > 0).double()
        share_c = (1 - self.label_smoothing) * counts / counts.sum() + self.label_smoothing / len(counts)
        return float(-torch.special.xlogy(share_c, share_c).sum())

    def optimize(self, groups: Sequence[tuple[Sequence[nn.Parameter], float]]) -> torch.optim.Optimizer:
        """Build the optimizer over layer groups of (parameters, peak rate)."""
        return build_optimizer(groups, self.optimizer, self.weight_decay)


def options_of(section: Training) -> Options:
    """Read the options from a section of params.yaml."""
    values = section.model_dump(include={field.name for field in fields(Options)})
    return Options(**values | {"patience": 0 if section.patience == "none" else section.patience})
