"""Training a head on cached activations: matrix work on one tensor, no image is touched.

Shape legend: v views (the plain one first), n images, d activation width, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from headstart.activations.store import Activations
from headstart.training.loop import Batch, History, Log, adamw, derive_seed, fit, predict, scores
from headstart.training.schedules import OneCycle, steps_per_epoch

TAKE = 8192  # rows gathered at a time


@dataclass(frozen=True)
class Rows:
    """Training rows that need not be in memory.

    Args:
        take: from images [m] and views [m] (int64) to activations [m, d] float32.
        views: v.
        y_n: class index of each image.
    """

    take: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    views: int
    y_n: torch.Tensor

    def plain(self) -> Iterator[torch.Tensor]:
        """The plain view of all images, some thousands at a time."""
        for images in torch.arange(len(self.y_n)).split(TAKE):
            yield self.take(images, torch.zeros_like(images))


def activations_of(activations: Activations, manifest: pd.DataFrame, split: str) -> Rows:
    """The rows and classes of one split, on the mapped file."""
    chosen = manifest[manifest["split"] == split]
    located = activations.locate(list(chosen["key"]))

    def take(images: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        return activations.gather(located[images.numpy()] + views.numpy())

    return Rows(take, activations.views, torch.tensor(chosen["class_index"].to_numpy(), dtype=torch.int64))


def epoch_batches(rows: Rows, batch_size: int, seed: int) -> Iterator[Batch]:
    """One epoch in random order, for each image one of its views drawn afresh.

    A last batch of one row is dropped: batch norm cannot normalise it.
    """
    y_n, generator = rows.y_n, torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y_n), generator=generator)
    views = torch.randint(rows.views, (len(y_n),), generator=generator)
    for images in order.split(batch_size * max(1, TAKE // batch_size)):  # many at a time: gathering has a cost per call
        x_nd = rows.take(images, views[images])
        for x, part in zip(x_nd.split(batch_size), images.split(batch_size), strict=True):
            if len(part) > 1 or len(order) == 1:
                yield x, y_n[part]


def train_head(
    head: nn.Module,
    rows: Rows,
    valid: Rows,
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
        rows: training activations and classes.
        valid: those whose plain view chooses the epoch.
        lr: peak learning rate.
    """

    def batches(epoch: int) -> Iterator[Batch]:
        return epoch_batches(rows, batch_size, derive_seed(seed, "order", epoch))

    def validate() -> dict[str, float]:
        return scores(predict(head, valid.plain()), valid.y_n)

    def prepare() -> None:
        head.train()

    return fit(
        head,
        adamw([(list(head.parameters()), lr)]),
        OneCycle(epochs * steps_per_epoch(len(rows.y_n), batch_size)),
        epochs=epochs,
        batches=batches,
        prepare=prepare,
        validate=validate,
        seed=seed,
        log=log,
        what="train_head",
    )
