"""Training a head on cached activations: matrix work on one tensor, no image is touched.

Shape legend: v views (the plain one first), n images, d activation width, c classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from headstart.training.loop import Batch, History, Log, adamw, derive_seed, fit, predict, scores
from headstart.training.schedules import OneCycle


def epoch_batches(x_vnd: torch.Tensor, y_n: torch.Tensor, batch_size: int, seed: int) -> Iterator[Batch]:
    """One epoch in random order, for each image one of its views drawn afresh.

    A last batch of one row is dropped: batch norm cannot normalise it.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y_n), generator=generator)
    views = torch.randint(len(x_vnd), (len(y_n),), generator=generator)
    for rows in order.split(batch_size):
        if len(rows) > 1 or len(order) == 1:
            yield x_vnd[views[rows], rows], y_n[rows]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches that `epoch_batches` yields."""
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 or count == 1)


def train_head(
    head: nn.Module,
    x_vnd: torch.Tensor,
    y_n: torch.Tensor,
    valid: tuple[torch.Tensor, torch.Tensor],
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
    log: Log,
) -> History:
    """Train a head by one-cycle AdamW.

    Args:
        head: [n, d] to [n, c], trained in place.
        x_vnd: training activations; y_n: their class indices.
        valid: plain activations [m, d] and class indices [m] that choose the epoch.
        lr: peak learning rate.
    """
    valid_x, valid_y = valid

    def batches(epoch: int) -> Iterator[Batch]:
        return epoch_batches(x_vnd, y_n, batch_size, derive_seed(seed, "order", epoch))

    def validate() -> dict[str, float]:
        return scores(predict(head, [valid_x]), valid_y)

    def prepare() -> None:
        head.train()

    return fit(
        head,
        adamw([(list(head.parameters()), lr)]),
        OneCycle(epochs * steps_per_epoch(len(y_n), batch_size)),
        epochs=epochs,
        batches=batches,
        prepare=prepare,
        validate=validate,
        seed=seed,
        log=log,
        what="train_head",
    )
