"""The training loop, one for the frozen head and for fine-tuning.

Shape legend: n rows of a batch, c classes. `x` is whatever the model takes.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from headstart.core.errors import InputError
from headstart.models.backbones import scoped_seed
from headstart.training.schedules import OneCycle

Batch = tuple[torch.Tensor, torch.Tensor]
Log = Callable[[int, dict[str, float]], None]
WEIGHT_DECAY = 0.01


@dataclass
class History:
    """Per epoch: mean training loss, validation log-loss and accuracy; and which epoch's weights were kept."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best: int = 0


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed for one purpose: equal arguments, equal seed; different ones, unrelated seeds."""
    text = "\0".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def adamw(groups: Sequence[tuple[Sequence[nn.Parameter], float]]) -> torch.optim.AdamW:
    """AdamW over layer groups of (parameters, learning rate); weight decay on matrices and kernels only.

    Each parameter group remembers its peak rate as `peak`, for the schedule to scale.
    """
    described = []
    for parameters, lr in groups:
        for decay in (True, False):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim > 1) == decay]
            if chosen:
                described.append({"params": chosen, "lr": lr, "peak": lr, "weight_decay": WEIGHT_DECAY * decay})
    return torch.optim.AdamW(described, eps=1e-5)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: OneCycle,
    *,
    epochs: int,
    batches: Callable[[int], Iterable[Batch]],
    prepare: Callable[[], None],
    validate: Callable[[], dict[str, float]],
    seed: int,
    log: Log,
    what: str,
    label_smoothing: float = 0.0,
) -> History:
    """Train, and leave the model with the weights of the epoch whose validation log-loss was lowest.

    Args:
        model: what is trained, in place.
        optimizer: its groups carry `peak` (see `adamw`).
        schedule: over all steps of all epochs.
        batches: from an epoch's number to its batches (x, y [n] int64).
        prepare: puts the model into training mode before each epoch.
        validate: returns at least `log_loss`; called after each epoch.
        seed: dropout of epoch e depends on (seed, e) alone.
        log: called with (epoch, metrics) after each epoch.
        what: the step's name, for messages.
        label_smoothing: share of the target spread over all classes, in training only.

    Raises:
        InputError: a loss that is not finite, naming epoch, step and learning rate.
    """
    history = History()
    best_state = copy.deepcopy(model.state_dict())
    step = 0
    for epoch in range(epochs):
        prepare()
        total, count = 0.0, 0
        with scoped_seed(derive_seed(seed, "dropout", epoch)):
            for x, y in batches(epoch):
                _schedule(optimizer, *schedule.at(step))
                loss = train_step(model, optimizer, x, y, label_smoothing)
                if not math.isfinite(loss):
                    rates = ", ".join(f"{group['lr']:.2g}" for group in optimizer.param_groups)
                    raise InputError(
                        f"{what}: the loss is {loss} in epoch {epoch + 1}, step {step} at learning rate {rates}",
                        fix=f"lower {what}.lr",
                    )
                total, count, step = total + loss * len(y), count + len(y), step + 1
        metrics = {"train_loss": total / count, **{f"valid_{k}": v for k, v in validate().items()}}
        history.epochs.append(metrics)
        log(epoch, metrics)
        if metrics["valid_log_loss"] <= min(past["valid_log_loss"] for past in history.epochs):
            history.best, best_state = epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return history


def _schedule(optimizer: torch.optim.Optimizer, factor: float, momentum: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
        group["betas"] = (momentum, group["betas"][1])


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, label_smoothing: float = 0.0
) -> float:
    """One step of cross-entropy on a batch; returns its loss before the step."""
    loss = F.cross_entropy(model(x), y, label_smoothing=label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """Logits [n, c] of all batches, in eval mode; the model's mode is put back."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return torch.cat([model(x).float().cpu() for x in batches])
    finally:
        for module, training in was_training.items():
            module.training = training


def scores(logits_nc: torch.Tensor, y_n: torch.Tensor) -> dict[str, float]:
    """Log-loss (nats) and accuracy of logits against labels."""
    return {
        "log_loss": float(F.cross_entropy(logits_nc.double(), y_n)),
        "accuracy": float((logits_nc.argmax(1) == y_n).double().mean()),
    }


def history_csv(history: History) -> bytes:
    """The history as CSV, a row per epoch; no times, so that equal runs give equal bytes."""
    columns = list(history.epochs[0])
    lines = [",".join(["epoch", *columns])]
    for number, metrics in enumerate(history.epochs, start=1):
        lines.append(",".join([str(number), *(repr(metrics[column]) for column in columns)]))
    return ("\n".join(lines) + "\n").encode()
