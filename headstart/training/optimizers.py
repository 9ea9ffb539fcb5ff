"""Optimizers over layer groups, and the loss they minimise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from headstart.training.schedules import MOMENTUM

Kind = Literal["adamw", "sgd"]


class Loss(Protocol):
    """A function from logits [n, c] and class indices [n] to one number, in nats."""

    def __call__(self, logits_nc: torch.Tensor, y_n: torch.Tensor, /) -> torch.Tensor: ...


def build_optimizer(
    groups: Sequence[tuple[Sequence[nn.Parameter], float]], kind: Kind = "adamw", weight_decay: float = 0.01
) -> torch.optim.Optimizer:
    """Build an optimizer over layer groups of (parameters, learning rate); weight decay is for matrices and kernels only.

    Each parameter group keeps its peak rate as `peak`, for the schedule to scale.

    Args:
        kind: "adamw" (Loshchilov and Hutter 2017, arXiv:1711.05101; eps as fastai 2), or "sgd" with momentum.
    """
    described = []
    for parameters, lr in groups:
        for decay in (True, False):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim > 1) == decay]
            if chosen:
                described.append({"params": chosen, "lr": lr, "peak": lr, "weight_decay": weight_decay * decay})
    if kind == "sgd":
        return torch.optim.SGD(described, momentum=MOMENTUM)
    return torch.optim.AdamW(described, eps=1e-5, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float, momentum: float) -> None:
    """Set every group's rate to its peak times `factor`, and its momentum (AdamW's first beta) to `momentum`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def cross_entropy(label_smoothing: float = 0.0, weight_c: torch.Tensor | None = None) -> Loss:
    """Return a cross-entropy loss with smoothed labels (Szegedy et al. 2015, arXiv:1512.00567, section 7) and class weights.

    Args:
        label_smoothing: share of the target that is spread over all classes.
        weight_c: weight of each class, [c]; the mean is over the weights.
    """

    def loss(logits_nc: torch.Tensor, y_n: torch.Tensor) -> torch.Tensor:
        weight = weight_c
        if weight is not None:  # the last classes may have no training image
            weight = F.pad(weight, (0, logits_nc.shape[1] - len(weight)))
        return F.cross_entropy(logits_nc, y_n, weight=weight, label_smoothing=label_smoothing)

    return loss


def class_weights(y_n: torch.Tensor, classes: int) -> torch.Tensor:
    """Return weights [c] that make every class count the same: n / (c x its images); 0 for a class without images."""
    counts = torch.bincount(y_n, minlength=classes).float()
    return torch.where(counts > 0, len(y_n) / (classes * counts.clamp_min(1)), 0.0)


def epoch_order(y_n: torch.Tensor, balance: bool, generator: torch.Generator) -> torch.Tensor:
    """Return the images [n] of an epoch: each once in random order, or, if `balance`, drawn so that classes are equal."""
    if not balance:
        return torch.randperm(len(y_n), generator=generator)
    weights = class_weights(y_n, int(y_n.max()) + 1)[y_n]
    return torch.multinomial(weights, len(y_n), replacement=True, generator=generator)
