"""Validation: a network's logits, and the scores that choose an epoch. Shape legend: n images, c classes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

HOTTEST = 8.0  # temperatures from 1/8 to 8: without a limit, a small set without errors would drive it to 0


@torch.inference_mode()
def collect_logits(model: nn.Module, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the logits [n, c] of all batches in eval mode, and restore the model's mode."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return torch.cat([model(x).float().cpu() for x in batches])
    finally:
        for module, training in was_training.items():
            module.training = training


def scores(logits_nc: torch.Tensor, y_n: torch.Tensor) -> dict[str, float]:
    """Return the log-loss (nats), the log-loss after temperature scaling, and the accuracy of logits."""
    return {
        "log_loss": float(F.cross_entropy(logits_nc.double(), y_n)),
        "calibrated_log_loss": calibrated_log_loss(logits_nc.double(), y_n),
        "accuracy": float((logits_nc.argmax(1) == y_n).double().mean()),
    }


def calibrated_log_loss(logits_nc: torch.Tensor, y_n: torch.Tensor) -> float:
    """Return the log-loss (nats) of logits divided by the temperature that suits these labels best.

    It chooses epochs, because label smoothing and long training change a network's confidence more than its knowledge.

    Source: Guo et al. 2017, arXiv:1706.04599 (temperature); Berta et al. 2025, arXiv:2501.19195 (choice of epoch).
    """
    if not logits_nc.isfinite().all():
        return math.nan

    def at(log_temperature: float) -> float:
        return float(F.cross_entropy(logits_nc / math.exp(log_temperature), y_n))

    most = math.log(HOTTEST)
    return min(float(minimize_scalar(at, bounds=(-most, most), method="bounded", options={"xatol": 1e-3}).fun), at(0.0))
