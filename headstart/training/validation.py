"""Validation: a network's logits. Shape legend: n images, c outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


@torch.inference_mode()
def collect_logits(model: nn.Module, batches: Iterable[Any]) -> torch.Tensor:
    """Return the logits [n, c] of all batches in eval mode, and restore the model's mode."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return torch.cat([model(x).float().cpu() for x in batches])
    finally:
        for module, training in was_training.items():
            module.training = training
