"""How a network trains, be it the head alone or the unfrozen whole: what params.yaml says of both."""

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
    """As in params.yaml; the defaults are fastai 2's.

    Args:
        schedule, cycle_len, cycle_mult: "one_cycle" over all epochs of a phase, or "sgdr": cycles of `cycle_len`
            epochs, each `cycle_mult` times as long as the one before.
        optimizer, weight_decay: see `build_optimizer`.
        label_smoothing: share of the target spread over all classes, in training only.
        balance: what is done about classes of unequal size: "none", "weights" in the loss, or "sampling".
        patience: epochs without a better one after which training stops; 0: never.
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
        """The schedule of a phase with so many steps in an epoch."""
        return one_cycle if self.schedule == "one_cycle" else WarmRestarts(self.cycle_len * steps, self.cycle_mult)

    def loss(self, y_n: torch.Tensor, device: torch.device) -> Loss:
        """What is minimised, given the training images' classes."""
        weights = class_weights(y_n, int(y_n.max()) + 1).to(device) if self.balance == "weights" else None
        return cross_entropy(self.label_smoothing, weights)

    def guess(self, y_n: torch.Tensor) -> float:
        """The loss, nats, of the best constant answer to training images of these classes: the entropy of the targets."""
        counts = torch.bincount(y_n).double()
        if self.balance != "none":
            counts = (counts > 0).double()
        share_c = (1 - self.label_smoothing) * counts / counts.sum() + self.label_smoothing / len(counts)
        return float(-torch.special.xlogy(share_c, share_c).sum())

    def optimize(self, groups: Sequence[tuple[Sequence[nn.Parameter], float]]) -> torch.optim.Optimizer:
        """The optimizer over layer groups of (parameters, peak rate)."""
        return build_optimizer(groups, self.optimizer, self.weight_decay)


def options_of(section: Training) -> Options:
    """The options of a section of params.yaml."""
    values = section.model_dump(include={field.name for field in fields(Options)})
    return Options(**values | {"patience": 0 if section.patience == "none" else section.patience})
