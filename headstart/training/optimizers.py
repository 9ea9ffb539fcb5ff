"""Optimizers over layer groups, and the order of an epoch's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from headstart.training.schedules import MOMENTUM

Kind = Literal["adamw", "sgd"]


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


def epoch_order(n: int, weights_n: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    """Return the images [n] of an epoch: each once in random order, or, given weights, drawn in proportion to them."""
    if weights_n is None:
        return torch.randperm(n, generator=generator)
    return torch.multinomial(weights_n, n, replacement=True, generator=generator)
